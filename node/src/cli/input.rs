//! Standard input, line by line, in a thread of its own: a read that nobody needs any more must not hold the process.

use std::io::{self, BufRead};
use std::thread;

use tokio::sync::mpsc;

/// Lines read ahead.
const LINES_MAX: usize = 16;
/// The longest line kept; every server's bound for a body is below it.
const LINE_BYTES_MAX: usize = 4 << 20;

/// One line without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// Over the bound; its bytes were passed over.
    TooLong,
}

/// The lines of standard input. The channel ends with the input, after an error if there was one.
pub(super) fn lines() -> mpsc::Receiver<io::Result<Line>> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = next(&mut input).transpose() {
            let ended = line.is_err();
            if sender.blocking_send(line).is_err() || ended {
                return;
            }
        }
    });
    lines
}

fn next(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let (mut line, mut too_long, mut any) = (Vec::new(), false, false);
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        any |= !bytes.is_empty();
        too_long |= line.len() + part.len() > LINE_BYTES_MAX;
        if !too_long {
            line.extend_from_slice(part);
        }
        let (used, last) = (end.map_or(bytes.len(), |end| end + 1), bytes.is_empty());
        input.consume(used);
        if end.is_some() || last {
            return Ok(match (any, too_long) {
                (false, _) => None,
                (true, true) => Some(Line::TooLong),
                (true, false) => Some(Line::Whole(line)),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Line> {
        let mut input = io::BufReader::with_capacity(3, text);
        std::iter::from_fn(|| next(&mut input).expect("memory is readable")).collect()
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_end_with_newline_or_input() {
        assert_eq!(all(b""), []);
        assert_eq!(
            all(b"hello\n\nworld"),
            [whole("hello"), whole(""), whole("world")]
        );
        assert_eq!(all(b"a\n"), [whole("a")]);
    }

    #[test]
    fn a_line_over_the_bound_is_passed_over() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 1];
        text.extend_from_slice(b"\nnext\n");
        assert_eq!(all(&text), [Line::TooLong, whole("next")]);
    }
}
