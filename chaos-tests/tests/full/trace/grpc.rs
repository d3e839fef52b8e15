//! The gRPC messages in one direction of a connection, taken from the bytes of its system calls.
//!
//! Only what is needed to read a cleartext HTTP/2 connection: DATA frames by stream, and gRPC's length prefix.

use std::collections::HashMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const MESSAGE_HEADER: usize = 5;

/// One direction of one connection.
#[derive(Debug, Default)]
pub(super) struct Direction {
    bytes: Vec<u8>,
    begun: bool,
    streams: HashMap<u32, Vec<u8>>,
}

impl Direction {
    /// Takes the bytes of one call and gives the messages that they complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.bytes.extend_from_slice(bytes);
        if !self.begun {
            let own = self.bytes.len().min(PREFACE.len());
            if self.bytes[..own] == PREFACE[..own] {
                if own < PREFACE.len() {
                    return Vec::new();
                }
                self.bytes.drain(..own);
            }
            self.begun = true;
        }
        let mut messages = Vec::new();
        while let Some((kind, stream, payload)) = self.frame() {
            if kind == DATA {
                let buffer = self.streams.entry(stream).or_default();
                buffer.extend_from_slice(&payload);
                while let Some(message) = message(buffer) {
                    messages.push(message);
                }
            }
        }
        messages
    }

    fn frame(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let header = self.bytes.get(..FRAME_HEADER)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let kind = header[3];
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let payload = self
            .bytes
            .get(FRAME_HEADER..FRAME_HEADER + length)?
            .to_vec();
        self.bytes.drain(..FRAME_HEADER + length);
        Some((kind, stream, payload))
    }
}

fn message(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let header = buffer.get(..MESSAGE_HEADER)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let message = buffer
        .get(MESSAGE_HEADER..MESSAGE_HEADER + length)?
        .to_vec();
    buffer.drain(..MESSAGE_HEADER + length);
    Some(message)
}
