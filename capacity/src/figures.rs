//! What the model starts from: figures.toml, over it what `bench` has measured (measured.json), and what rows take by the
//! node's own encodings.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::rows;
use crate::table::{Table, number};

const FIGURES: &str = include_str!("../figures.toml");
const MEASURED: &str = include_str!("../measured.json");
/// In measured.json; the others there are compared with it.
const SYSTEM: &str = "roost";

/// One number and where it comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Figure {
    name: String,
    group: Group,
    what: String,
    unit: String,
    value: f64,
    origin: Origin,
    /// The command that measures it, or why it is assumed.
    how: String,
    /// What it is to become.
    goal: Option<f64>,
    bench: Option<Bench>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    Load,
    Node,
    Cost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Given,
    Assumed,
    Measured,
    Computed,
}

/// Which figure of measured.json replaces the value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bench {
    row: String,
    metric: String,
    /// The value is this divided by the figure; else the figure itself.
    over: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    figure: Vec<Figure>,
}

/// As `bench` writes it; it says more than is wanted here.
#[derive(Deserialize)]
struct Measured {
    row: String,
    system: String,
    metric: String,
    value: f64,
}

/// All figures, in the order in which they are shown.
#[derive(Clone, Debug)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// # Errors
    /// When a file is not what it should be.
    pub(crate) fn read() -> Result<Self> {
        let file: File = toml::from_str(FIGURES).context("capacity/figures.toml")?;
        let measured: Vec<Measured> =
            serde_json::from_str(MEASURED).context("capacity/measured.json")?;
        let mut figures = Self(file.figure);
        for figure in &mut figures.0 {
            figure.take(&measured);
        }
        let body_bytes = figures.value("body_bytes")?;
        for (name, what, bytes) in rows::all(body_bytes as usize) {
            figures.0.push(Figure {
                name: name.to_owned(),
                group: Group::Cost,
                what: what.to_owned(),
                unit: "bytes".to_owned(),
                value: bytes as f64,
                origin: Origin::Computed,
                how: "key and value as the store encodes them, before its compression".to_owned(),
                goal: None,
                bench: None,
            });
        }
        Ok(figures)
    }

    /// The value of a figure.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn value(&self, name: &str) -> Result<f64> {
        let found = self.0.iter().find(|figure| figure.name == name);
        let found = found.with_context(|| format!("there is no figure {name}"))?;
        Ok(found.value)
    }

    /// The same, had every goal been reached.
    pub(crate) fn at_goals(&self) -> Self {
        let reached = |figure: &Figure| Figure {
            value: figure.goal.unwrap_or(figure.value),
            ..figure.clone()
        };
        Self(self.0.iter().map(reached).collect())
    }

    /// All of them, with where each comes from.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::of_words(&["", "figure", "value", "goal", "from"]);
        for figure in &self.0 {
            let group = match figure.group {
                Group::Load => "load",
                Group::Node => "node",
                Group::Cost => "cost",
            };
            let goal = figure.goal.map(|goal| figure.shown(goal));
            table.row(
                group,
                [
                    figure.what.clone(),
                    figure.shown(figure.value),
                    goal.unwrap_or_default(),
                    figure.source(),
                ],
            );
        }
        table.finish()
    }
}

impl Figure {
    fn take(&mut self, measured: &[Measured]) {
        let Some(bench) = &self.bench else { return };
        let found = measured.iter().find(|one| {
            (one.row.as_str(), one.system.as_str(), one.metric.as_str())
                == (bench.row.as_str(), SYSTEM, bench.metric.as_str())
        });
        if let Some(found) = found {
            self.value = bench.over.map_or(found.value, |over| over / found.value);
            self.origin = Origin::Measured;
        }
    }

    fn shown(&self, value: f64) -> String {
        format!("{} {}", number(value), self.unit)
            .trim_end()
            .to_owned()
    }

    fn source(&self) -> String {
        let origin = match self.origin {
            Origin::Given => "given",
            Origin::Assumed => "**assumed**",
            Origin::Measured => "measured",
            Origin::Computed => "computed",
        };
        match self.how.as_str() {
            "" => origin.to_owned(),
            how => format!("{origin}: {how}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_replaces_what_stood_there() -> Result<()> {
        let mut figure = Figures::read()?.0.swap_remove(0);
        figure.bench = Some(Bench {
            row: "B".to_owned(),
            metric: "rate".to_owned(),
            over: Some(1000.0),
        });
        let measured = |system: &str, value| Measured {
            row: "B".to_owned(),
            system: system.to_owned(),
            metric: "rate".to_owned(),
            value,
        };
        figure.take(&[measured("other", 1.0), measured("roost", 500.0)]);
        assert_eq!((figure.value, figure.origin), (2.0, Origin::Measured));
        Ok(())
    }

    #[test]
    fn goals_replace_only_what_has_one() -> Result<()> {
        let figures = Figures::read()?;
        let goals = figures.at_goals();
        assert!(goals.value("session_bytes")? <= figures.value("session_bytes")?);
        assert_eq!(goals.value("zones")?, figures.value("zones")?);
        assert!(figures.value("nothing").is_err());
        Ok(())
    }
}
