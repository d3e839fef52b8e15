//! The figures: kept as a JSON array of `{row, system, metric, value, unit, runs}`, to which each row's run adds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One figure: the median of its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) row: String,
    pub(crate) system: String,
    pub(crate) metric: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    /// What each run gave, in the order of the runs: the noise.
    pub(crate) runs: Vec<f64>,
}

/// What one run of a row measured, in the order in which it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run(Vec<(String, &'static str, f64)>);

impl Run {
    pub(crate) fn add(&mut self, metric: impl Into<String>, unit: &'static str, value: f64) {
        self.0.push((metric.into(), unit, value));
    }

    pub(crate) fn get(&self, metric: &str) -> Option<f64> {
        let found = self.0.iter().find(|(name, _, _)| name == metric);
        found.map(|(_, _, value)| *value)
    }

    pub(crate) fn extend(&mut self, prefix: &str, other: Self) {
        let prefixed = other
            .0
            .into_iter()
            .map(|(metric, unit, value)| (format!("{prefix}{metric}"), unit, value));
        self.0.extend(prefixed);
    }
}

/// The figures of a row out of its runs.
pub(crate) fn figures(row: &str, system: &str, runs: &[Run]) -> Vec<Figure> {
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (metric, unit, value) in runs.iter().flat_map(|run| &run.0) {
        let runs = values.entry(metric).or_default();
        if runs.is_empty() {
            order.push((metric, unit));
        }
        runs.push(*value);
    }
    let figure = |(metric, unit): (&str, &str)| Figure {
        row: row.to_owned(),
        system: system.to_owned(),
        metric: metric.to_owned(),
        value: median(&values[metric]),
        unit: unit.to_owned(),
        runs: values[metric].clone(),
    };
    order.into_iter().map(figure).collect()
}

fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Puts these figures into the file, where older ones of the same row and system go; returns all that are there.
///
/// # Errors
/// When the file is not what this writes, or cannot be written.
pub(crate) fn merge(file: &Path, new: &[Figure]) -> Result<Vec<Figure>> {
    let shown = file.display();
    let mut all: Vec<Figure> = match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{shown} holds something else than figures"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    all.retain(|old| {
        !new.iter()
            .any(|new| (&new.row, &new.system) == (&old.row, &old.system))
    });
    all.extend_from_slice(new);
    all.sort_by(|a, b| (&a.row, &a.system).cmp(&(&b.row, &b.system)));
    let text = serde_json::to_string_pretty(&all)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {shown}"))?;
    Ok(all)
}

/// Prints them as a table.
#[allow(clippy::print_stdout, reason = "this is the output")]
pub(crate) fn print(figures: &[Figure]) {
    for figure in figures {
        let runs: Vec<String> = figure.runs.iter().map(|value| short(*value)).collect();
        println!(
            "{:2} {:10} {:44} {:>12} {:22} [{}]",
            figure.row,
            figure.system,
            figure.metric,
            short(figure.value),
            figure.unit,
            runs.join(" ")
        );
    }
}

pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        ..10.0 => format!("{value:.3}"),
        ..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: f64) -> Run {
        let mut run = Run::default();
        run.add("rate", "msg/s", value);
        run
    }

    #[test]
    fn a_figure_is_the_median_and_keeps_its_runs() {
        let figures = figures("A", "roost", &[run(3.0), run(1.0), run(2.0)]);
        assert_eq!(figures.len(), 1);
        assert_eq!((figures[0].value, figures[0].runs.len()), (2.0, 3));
        assert_eq!(median(&[1.0, 2.0]), 1.5);
    }

    #[test]
    fn a_row_replaces_itself_and_nothing_else() -> Result<()> {
        let file = std::env::temp_dir().join(format!("roost-bench-{}.json", std::process::id()));
        let of = |row: &str, value| figures(row, "roost", &[run(value)]);
        merge(&file, &of("B", 1.0))?;
        merge(&file, &of("A", 1.0))?;
        merge(&file, &of("B", 2.0))?;
        let all: Vec<Figure> = serde_json::from_slice(&fs::read(&file)?)?;
        fs::remove_file(&file)?;
        let values: Vec<_> = all.iter().map(|f| (f.row.as_str(), f.value)).collect();
        assert_eq!(values, [("A", 1.0), ("B", 2.0)]);
        Ok(())
    }
}
