//! Lines of `strace -f -yy -xx -ttt -T`, as calls.

use std::collections::HashMap;

/// One system call that has ended.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) name: String,
    /// The file's path, or `TCP:[local->remote]`.
    pub(super) file: String,
    pub(super) data: Vec<u8>,
    pub(super) start_us: u64,
    pub(super) end_us: u64,
    pub(super) succeeded: bool,
}

/// All calls, by their start.
pub(super) fn parse(text: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, (u64, String)> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((thread, start_us, rest)) = head(line) else {
            continue;
        };
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (start_us, begun.to_owned()));
        } else if let Some((_, end)) = rest
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            if let Some((start_us, begun)) = unfinished.remove(thread) {
                calls.extend(call(start_us, &(begun + end)));
            }
        } else {
            calls.extend(call(start_us, rest));
        }
    }
    calls.sort_by_key(|call| call.start_us);
    calls
}

fn head(line: &str) -> Option<(&str, u64, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (time, rest) = rest.trim_start().split_once(' ')?;
    let (seconds, micros) = time.split_once('.')?;
    let start_us = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    Some((thread, start_us, rest))
}

fn call(start_us: u64, text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ")?;
    let result = result.trim_start().strip_prefix("= ")?;
    let (value, took) = result.rsplit_once('<')?;
    let took_us = took.trim_end().strip_suffix('>')?.replace('.', "");
    let returned: i64 = value.split_whitespace().next()?.parse().ok()?;
    let file = file(arguments)?;
    let mut data = strings(arguments);
    data.truncate(returned.max(0) as usize);
    Some(Call {
        name: name.to_owned(),
        file,
        data,
        start_us,
        end_us: start_us + took_us.parse::<u64>().ok()?,
        succeeded: returned >= 0,
    })
}

fn file(arguments: &str) -> Option<String> {
    let label = arguments.split_once('<')?.1;
    if label.starts_with("TCP") {
        return Some(label.split_once("]>")?.0.to_owned());
    }
    let label = label.split_once('>')?.0;
    Some(String::from_utf8_lossy(&unescape(label)).into_owned())
}

/// Everything between double quotes.
fn strings(arguments: &str) -> Vec<u8> {
    let quoted = arguments.split('"').skip(1).step_by(2);
    quoted.flat_map(unescape).collect()
}

/// `\x68\x69`; anything else is no data of ours.
fn unescape(text: &str) -> Vec<u8> {
    let escapes = text.split("\\x").skip(1);
    escapes
        .filter_map(|escape| u8::from_str_radix(escape.get(..2)?, 16).ok())
        .collect()
}

/// Goal and method: a plain line and one that is interrupted by another thread, as strace writes them.
#[test]
fn lines_become_calls() {
    let text = "\
7 100.000010 sendto(4<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"\\x68\\x69\", 2, 0, NULL, 0) = 2 <0.000003>
7 100.000020 fdatasync(6<\\x2f\\x61> <unfinished ...>
8 100.000021 write(6<\\x2f\\x61>, \"\\x62\\x63\", 2) = 1 <0.000001>
7 100.000040 <... fdatasync resumed>) = 0 <0.000021>
";
    let calls = parse(text);
    let told: Vec<_> = calls
        .iter()
        .map(|call| {
            (
                call.name.as_str(),
                call.file.as_str(),
                &call.data[..],
                call.end_us - 100_000_000,
            )
        })
        .collect();
    let expected: [(&str, &str, &[u8], u64); 3] = [
        ("sendto", "TCP:[127.0.0.1:1->127.0.0.1:2", b"hi", 13),
        ("fdatasync", "/a", b"", 41),
        ("write", "/a", b"b", 22),
    ];
    assert_eq!(told, expected);
}
