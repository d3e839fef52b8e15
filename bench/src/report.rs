//! The figures as one page for people: a bar for each system and metric, with a tick for each run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::results::{Figure, short};

const BAR_WIDTH: f64 = 420.0;
const BAR_HEIGHT: u32 = 14;
const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:70em}td{padding:2px 10px;vertical-align:middle}\
                     td.n{text-align:right;white-space:nowrap}h2{margin-top:1.5em}caption{text-align:left}";

/// Writes the page.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(file: &Path, figures: &[Figure]) -> Result<()> {
    fs::write(file, page(figures)).with_context(|| format!("cannot write {}", file.display()))
}

fn page(figures: &[Figure]) -> String {
    let mut rows: Vec<&str> = figures.iter().map(|figure| figure.row.as_str()).collect();
    rows.dedup();
    let mut html = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Roost: figures</title><style>{STYLE}</style>\n\
         <h1>Roost: figures</h1>\n<p>Medians; each tick is one run. What the rows are: docs/PERFORMANCE.md.</p>\n"
    );
    for row in rows {
        let of_row: Vec<&Figure> = figures.iter().filter(|figure| figure.row == row).collect();
        section(&mut html, row, &of_row);
    }
    html
}

fn section(html: &mut String, row: &str, figures: &[&Figure]) {
    let mut metrics: Vec<&str> = Vec::new();
    for figure in figures {
        if !metrics.contains(&figure.metric.as_str()) {
            metrics.push(&figure.metric);
        }
    }
    let _ = writeln!(html, "<h2>Row {}</h2>\n<table>", text(row));
    for metric in metrics {
        let of_metric = figures.iter().filter(|figure| figure.metric == metric);
        let most = of_metric.clone().flat_map(|figure| &figure.runs);
        let most = most.copied().fold(0.0, f64::max);
        for figure in of_metric {
            let _ = writeln!(
                html,
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{} {}</td><td>{}</td></tr>",
                text(metric),
                text(&figure.system),
                short(figure.value),
                text(&figure.unit),
                bar(figure, most)
            );
        }
    }
    html.push_str("</table>\n");
}

fn bar(figure: &Figure, most: f64) -> String {
    let at = |value: f64| match most > 0.0 {
        true => value / most * BAR_WIDTH,
        false => 0.0,
    };
    let color = match figure.system.as_str() {
        "roost" => "#2b6cb0",
        _ => "#a0aec0",
    };
    let mut svg = format!(
        "<svg width=\"{BAR_WIDTH}\" height=\"{BAR_HEIGHT}\"><rect width=\"{:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{color}\"/>",
        at(figure.value)
    );
    for run in &figure.runs {
        let x = at(*run);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y2=\"{BAR_HEIGHT}\" stroke=\"black\"/>"
        );
    }
    svg + "</svg>"
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Run, figures};

    #[test]
    fn a_page_names_everything_and_draws_every_run() {
        let mut runs = [Run::default(), Run::default()];
        runs[0].add("a < b", "msg/s", 1.0);
        runs[1].add("a < b", "msg/s", 3.0);
        let page = page(&figures("A", "roost", &runs));
        assert!(
            page.contains("a &lt; b") && page.contains("2.000 msg/s"),
            "{page}"
        );
        assert_eq!(page.matches("<line").count(), 2);
    }
}
