//! Tables between markers of a document: `<!-- capacity:begin NAME -->` and `<!-- capacity:end NAME -->`, each on a line
//! of its own.

use anyhow::{Context as _, Result};

/// A table and the name of its markers.
pub(crate) struct Block {
    pub(crate) name: &'static str,
    pub(crate) table: String,
}

impl Block {
    pub(crate) fn new(name: &'static str, table: String) -> Self {
        Self { name, table }
    }
}

/// The document with these tables between their markers; all else stays.
///
/// # Errors
/// Naming the block whose markers are not there.
pub(crate) fn fill(text: &str, blocks: &[Block]) -> Result<String> {
    let mut filled = text.to_owned();
    for Block { name, table } in blocks {
        let begin = format!("<!-- capacity:begin {name} -->\n");
        let end = format!("<!-- capacity:end {name} -->");
        let missing = || format!("the document has no markers for {name}");
        let (before, rest) = filled.split_once(&begin).with_context(missing)?;
        let (_, after) = rest.split_once(&end).with_context(missing)?;
        filled = format!("{before}{begin}\n{table}\n{end}{after}");
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a\n<!-- capacity:begin x -->\nold\n<!-- capacity:end x -->\nb\n";

    #[test]
    fn what_stands_between_the_markers_is_replaced() -> Result<()> {
        let blocks = [Block::new("x", "| new |\n".to_owned())];
        let filled = fill(TEXT, &blocks)?;
        assert_eq!(
            filled,
            "a\n<!-- capacity:begin x -->\n\n| new |\n\n<!-- capacity:end x -->\nb\n"
        );
        assert_eq!(fill(&filled, &blocks)?, filled);
        assert!(fill(TEXT, &[Block::new("y", String::new())]).is_err());
        Ok(())
    }
}
