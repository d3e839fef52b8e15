//! Nothing waits without a bound: who opens a channel without one says beside it what bounds its contents.

use std::fs;
use std::path::Path;

const OPENS: [&str; 2] = ["unbounded_channel(", "unbounded()"];

/// Goal: every unbounded channel of the node and the client carries its argument. Method: a search of the sources; the
/// comment right above has to say what it is "bounded by".
#[test]
fn an_unbounded_channel_says_what_bounds_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = 0;
    let mut missing = Vec::new();
    for package in ["node", "client"] {
        visit(&root.join(package).join("src"), &mut |path, text| {
            let (all, without) = look(text);
            found += all;
            let lines = without.into_iter();
            missing.extend(lines.map(|line| format!("{}:{line}", path.display())));
        });
    }
    assert!(found >= 5, "the search finds them at all");
    assert!(missing.is_empty(), "no bound said:\n{}", missing.join("\n"));
}

/// Goal: the check can fail.
#[test]
fn one_without_a_word_is_found() {
    let open = format!("let (a, b) = mpsc::{});", OPENS[0]);
    assert_eq!(look(&open), (1, vec![1]));
    assert_eq!(look(&format!("// Why not.\n{open}")), (1, vec![2]));
    let argued = format!("// Bounded by the window,\n// as said there.\n{open}");
    assert_eq!(look(&argued), (1, vec![]));
    assert_eq!(
        look(&format!("#[cfg(test)]\nmod tests {{\n{open}")),
        (0, vec![])
    );
}

/// How many channels a source opens, and the lines of those that say nothing.
fn look(text: &str) -> (usize, Vec<usize>) {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests = lines.iter().position(|line| *line == "#[cfg(test)]");
    // A module of tests stands at the end; a declaration of one in a file of its own does not.
    let code = match tests {
        Some(at) if lines.get(at + 1).is_some_and(|next| next.ends_with('{')) => &lines[..at],
        _ => &lines[..],
    };
    let opened = code
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("//") && OPENS.iter().any(|open| line.contains(open)))
        .map(|(at, _)| at);
    let opened: Vec<usize> = opened.collect();
    let silent = opened.iter().filter(|at| {
        let above = code[..**at].iter().rev();
        let mut comment = above.take_while(|line| line.starts_with("//"));
        !comment.any(|line| line.to_lowercase().contains("bounded by"))
    });
    (opened.len(), silent.map(|at| at + 1).collect())
}

fn visit(directory: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_test = name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs");
        if is_test || name == "testing.rs" {
            continue;
        }
        if path.is_dir() {
            visit(&path, look);
        } else if name.ends_with(".rs") {
            look(&path, &fs::read_to_string(&path).expect("readable"));
        }
    }
}
