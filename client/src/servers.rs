//! Which server to try next.

use std::collections::VecDeque;

use rand::Rng;

/// How many of the servers that a goodbye named are kept.
const HINTS_MAX: usize = 16;

/// The list in turn, from a random start so that clients spread; what a goodbye named comes first.
#[derive(Debug)]
pub(crate) struct Servers {
    list: Vec<String>,
    next: usize,
    hints: VecDeque<String>,
}

impl Servers {
    /// `list` is not empty.
    pub(crate) fn new(list: &[String]) -> Self {
        Self {
            list: list.iter().map(|server| url(server)).collect(),
            next: rand::rng().random_range(0..list.len()),
            hints: VecDeque::new(),
        }
    }

    pub(crate) fn hint(&mut self, servers: &[String]) {
        self.hints = servers.iter().take(HINTS_MAX).map(|s| url(s)).collect();
    }

    pub(crate) fn next(&mut self) -> String {
        if let Some(hint) = self.hints.pop_front() {
            return hint;
        }
        let server = self.list[self.next].clone();
        self.next = (self.next + 1) % self.list.len();
        server
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}

/// `host:port` is short for `http://host:port`.
pub(crate) fn url(server: &str) -> String {
    if server.contains("://") {
        server.to_owned()
    } else {
        format!("http://{server}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_first_then_all_in_turn() {
        let mut servers = Servers::new(&["a:1".to_owned(), "http://b:2".to_owned()]);
        servers.hint(&["c:3".to_owned()]);
        assert_eq!(servers.next(), "http://c:3");
        let mut two = [servers.next(), servers.next()];
        two.sort();
        assert_eq!(two, ["http://a:1", "http://b:2"]);
    }
}
