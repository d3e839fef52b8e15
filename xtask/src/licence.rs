//! Licence expressions (SPDX), and which licences we accept.
//!
//! `OR` needs one accepted side, `AND` both, and an exception after `WITH` only ever permits more. The slash of older
//! manifests means `OR`.

/// Licences that a dependency may come under. All let us ship it within an Apache-2.0 program.
const ACCEPTED: [&str; 12] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether the expression can be met with accepted licences alone. What does not parse is not accepted.
pub(crate) fn is_accepted(expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    any(&mut words) == Some(true) && words.is_empty()
}

/// `all OR all OR ...`; the words come from the end of the list.
fn any(words: &mut Vec<&str>) -> Option<bool> {
    let mut accepted = all(words)?;
    while take(words, "OR") {
        accepted |= all(words)?;
    }
    Some(accepted)
}

/// `one AND one AND ...`
fn all(words: &mut Vec<&str>) -> Option<bool> {
    let mut accepted = one(words)?;
    while take(words, "AND") {
        accepted &= one(words)?;
    }
    Some(accepted)
}

/// A licence, perhaps with an exception, or an expression in brackets.
fn one(words: &mut Vec<&str>) -> Option<bool> {
    if take(words, "(") {
        let accepted = any(words)?;
        return take(words, ")").then_some(accepted);
    }
    let licence = words.pop()?;
    if take(words, "WITH") {
        words.pop()?;
    }
    Some(ACCEPTED.contains(&licence))
}

fn take(words: &mut Vec<&str>, word: &str) -> bool {
    words.pop_if(|next| *next == word).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_accepted_side_of_or_is_enough() {
        assert!(
            [
                "MIT",
                "MIT OR GPL-3.0",
                "GPL-3.0/Apache-2.0",
                "Apache-2.0 / MIT"
            ]
            .into_iter()
            .all(is_accepted)
        );
        assert!(!is_accepted("GPL-3.0 OR AGPL-3.0"));
    }

    #[test]
    fn both_sides_of_and_are_needed() {
        assert!(is_accepted("(MIT OR GPL-3.0) AND Unicode-3.0"));
        assert!(!is_accepted("MIT AND GPL-3.0"));
        assert!(is_accepted("GPL-3.0 AND Zlib OR MIT"), "AND binds closer");
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        assert!(is_accepted("Apache-2.0 WITH LLVM-exception OR GPL-3.0"));
        assert!(!is_accepted("GPL-3.0 WITH Classpath-exception-2.0"));
    }

    #[test]
    fn what_does_not_parse_is_not_accepted() {
        assert!(
            !["", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND"]
                .into_iter()
                .any(is_accepted)
        );
    }
}
