//! Tables in markdown, and numbers as people read them.

use std::fmt::Display;

/// A table that grows row by row. Columns after the first are aligned to the right where they hold numbers.
pub(crate) struct Table(String);

impl Table {
    /// With these headings; the columns after the first hold numbers.
    pub(crate) fn of_numbers(headings: &[String]) -> Self {
        Self::new(headings, "--:")
    }

    /// With these headings; all columns hold words.
    pub(crate) fn of_words(headings: &[&str]) -> Self {
        let headings: Vec<String> = headings.iter().map(|word| (*word).to_owned()).collect();
        Self::new(&headings, "---")
    }

    fn new(headings: &[String], others: &str) -> Self {
        let mut table = Self(String::new());
        table.line(headings);
        let rules = (0..headings.len()).map(|at| if at == 0 { "---" } else { others });
        table.line(&rules.collect::<Vec<_>>());
        table
    }

    /// A row: what it says, and a cell for each further column.
    pub(crate) fn row(&mut self, what: &str, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = std::iter::once(what.to_owned()).chain(cells).collect();
        self.line(&row);
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }

    fn line<T: Display>(&mut self, cells: &[T]) {
        for cell in cells {
            self.0 += &format!("| {cell} ");
        }
        self.0 += "|\n";
    }
}

/// Three significant digits or more, with commas between thousands.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        ..0.01 => trimmed(format!("{value:.4}")),
        ..10.0 => trimmed(format!("{value:.2}")),
        ..100.0 => trimmed(format!("{value:.1}")),
        _ => with_commas(&format!("{value:.0}")),
    }
}

/// With commas between thousands.
pub(crate) fn count(value: usize) -> String {
    with_commas(&value.to_string())
}

fn trimmed(digits: String) -> String {
    digits
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

fn with_commas(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        let shown = [0.0, 0.0003, 0.5, 1.0, 1.334, 42.24, 100.4, 1234.0, 51_774.0].map(number);
        assert_eq!(
            shown,
            [
                "0", "0.0003", "0.5", "1", "1.33", "42.2", "100", "1,234", "51,774"
            ]
        );
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::of_numbers(&["a".to_owned(), "b".to_owned()]);
        table.row("x", ["1".to_owned()]);
        assert_eq!(table.finish(), "| a | b |\n| --- | --: |\n| x | 1 |\n");
    }
}
