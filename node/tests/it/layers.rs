//! The layer rule of `src/lib.rs`: a module uses only what stands above it in the list there.
//!
//! Blank lines separate the layers of the list. Modules of one layer may use each other, but not in a circle. Tests
//! beside code may use everything, so what stands under `#[cfg(test)]`, and files named as the project names tests, are
//! not looked at. A search of the text, not a compiler: it knows paths from `crate::`, plain and in braces, and `super::` out of a
//! module's own root file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Goal: the layers hold. Method: every use of another module in every file, against the list.
#[test]
fn modules_use_only_what_stands_above_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers(&without_tests_and_comments(&text(&source.join("lib.rs"))));
    let mut uses = Vec::new();
    for module in layers.keys() {
        let files = files_of(&source, module);
        assert!(!files.is_empty(), "module {module} has no file");
        for file in files {
            let name = file.strip_prefix(&source).expect("it was found there");
            uses.extend(uses_in(module, name, &text(&file)));
        }
    }
    assert!(uses.len() > 100, "the search finds uses at all");
    let wrong = violations(&layers, &uses);
    let shown: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert!(
        wrong.is_empty(),
        "the layers of src/lib.rs do not hold:\n{}",
        shown.join("\n")
    );
}

/// Goal: the check can fail. Method: a list of three modules and one text for each way to break it.
#[test]
fn a_use_from_below_is_found() {
    let layers = layers("pub mod low;\n\nmod left;\nmod right;\n\nmod high;\n");
    let found = |module: &str, source: &str| {
        let uses = uses_in(module, Path::new("x.rs"), source);
        let found: Vec<String> = violations(&layers, &uses)
            .iter()
            .map(ToString::to_string)
            .collect();
        found
    };
    assert_eq!(
        found("high", "use crate::low::A;\nuse crate::{left, right::B};"),
        [""; 0]
    );
    assert_eq!(
        found("low", "\nuse crate::high::A;"),
        ["src/x.rs:2: low uses high"]
    );
    assert_eq!(
        found("low", "use crate::{\n    low::C,\n    left::{A, B},\n};"),
        ["src/x.rs:3: low uses left"]
    );
    assert_eq!(
        found("left", "fn f() { crate::high::g() }"),
        ["src/x.rs:1: left uses high"]
    );
    assert_eq!(found("low", "// see crate::high\n//! crate::high"), [""; 0]);
    assert_eq!(
        found(
            "low",
            "#[cfg(test)]\nmod tests {\n    use crate::high;\n}\n"
        ),
        [""; 0]
    );
    let both = [
        uses_in("left", Path::new("l.rs"), "use crate::right::A;"),
        uses_in("right", Path::new("r.rs"), "use crate::left::B;"),
    ]
    .concat();
    assert_eq!(violations(&layers, &both).len(), 2, "a circle in one layer");
}

/// Module to layer, the lowest first.
type Layers = BTreeMap<String, usize>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Use {
    file: PathBuf,
    line: usize,
    by: String,
    of: String,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, by, of } = self;
        write!(f, "src/{}:{line}: {by} uses {of}", file.display())
    }
}

fn layers(lib: &str) -> Layers {
    let mut layers = Layers::new();
    let mut layer = 0;
    for line in lib.lines() {
        let declared = line
            .trim_start_matches("pub ")
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(';'));
        match declared {
            Some(module) => drop(layers.insert(module.to_owned(), layer)),
            None if line.is_empty() => layer += 1,
            None => {}
        }
    }
    layers
}

fn violations<'a>(layers: &Layers, uses: &'a [Use]) -> Vec<&'a Use> {
    let wrong = |used: &&Use| match (layers[&used.by], layers.get(&used.of)) {
        (_, None) => false,
        (by, Some(of)) if by == *of => used.by != used.of && leads(layers, uses, used),
        (by, Some(of)) => by < *of,
    };
    uses.iter().filter(wrong).collect()
}

/// Whether what is used leads back to who uses it, within their layer.
fn leads(layers: &Layers, uses: &[Use], first: &Use) -> bool {
    let layer = layers[&first.by];
    let mut seen = BTreeSet::from([first.of.as_str()]);
    let mut next = vec![first.of.as_str()];
    while let Some(module) = next.pop() {
        for used in uses.iter().filter(|used| used.by == module) {
            if layers.get(&used.of) == Some(&layer) && seen.insert(&used.of) {
                next.push(&used.of);
            }
        }
    }
    seen.contains(first.by.as_str())
}

fn uses_in(module: &str, file: &Path, source: &str) -> Vec<Use> {
    let source = without_tests_and_comments(source);
    let is_root = file.ends_with("mod.rs") && file.components().count() == 2
        || file.components().count() == 1;
    let mut uses = Vec::new();
    let mut roots = vec!["crate::"];
    if is_root {
        roots.push("super::");
    }
    for root in roots {
        for (at, _) in source.match_indices(root) {
            if source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            for (offset, of) in names(&source[at + root.len()..]) {
                let before = &source[..at + root.len() + offset];
                uses.push(Use {
                    file: file.to_owned(),
                    line: before.matches('\n').count() + 1,
                    by: module.to_owned(),
                    of: of.to_owned(),
                });
            }
        }
    }
    uses
}

/// The first names of a path, or of each path in a group, with where they stand.
fn names(path: &str) -> Vec<(usize, &str)> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![(0, name(path))];
    };
    let (mut names, mut depth, mut expects_name) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects_name = true,
            c if c.is_whitespace() => {}
            _ if expects_name => {
                names.push((at + 1, name(&group[at..])));
                expects_name = false;
            }
            _ => {}
        }
    }
    names
}

fn name(path: &str) -> &str {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
    &path[..end.unwrap_or(path.len())]
}

/// The same number of lines, with those empty that are comments or stand under `#[cfg(test)]`.
fn without_tests_and_comments(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let indent = line.len() - line.trim_start().len();
            kept.push('\n');
            for line in lines.by_ref() {
                kept.push('\n');
                let here = line.len() - line.trim_start().len();
                if here == indent && (line.ends_with(';') || line.trim() == "}") {
                    break;
                }
            }
            continue;
        }
        kept.push_str(line.split("//").next().unwrap_or_default());
        kept.push('\n');
    }
    kept
}

/// The module's files, without those that its files declare under `#[cfg(test)]`.
fn files_of(source: &Path, module: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let alone = source.join(format!("{module}.rs"));
    if alone.exists() {
        files.push(alone);
    }
    let mut directories = vec![source.join(module)];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("the directory can be read").path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            // As the project names them; what is only for tests is never named otherwise.
            if name == "tests" || name.ends_with("_tests") || name.starts_with("test_") {
                continue;
            }
            match path.is_dir() {
                true => directories.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
