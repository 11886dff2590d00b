//! Code on a page is a quotation: every line of it stands in the sources that the page is about.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Sources below a folder, each as lines without indentation.
fn sources(folder: &Path, found: &mut Vec<Vec<String>>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "toml") {
            found.push(lines(&fs::read_to_string(&path).expect("a source in UTF-8")));
        }
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The page's blocks of code in that language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    page.split(&start).skip(1).map(|rest| rest.split("```").next().unwrap_or(rest)).collect()
}

/// Whether a source has the block's lines one after another. A line `// ...` stands for any lines between.
fn holds(source: &[String], block: &[String]) -> bool {
    let mut from = 0;
    block.split(|line| line == "// ...").filter(|part| !part.is_empty()).all(|part| {
        let place = source[from..].windows(part.len()).position(|lines| lines == part);
        from += place.unwrap_or(0) + part.len();
        place.is_some()
    })
}

#[track_caller]
fn quotes(page: &str, folders: &[&str]) {
    let text = fs::read_to_string(root().join(page)).expect("the page");
    let mut found = Vec::new();
    for folder in folders {
        sources(&root().join(folder), &mut found);
    }
    let blocks = [blocks(&text, "rust"), blocks(&text, "toml")].concat();
    assert!(!blocks.is_empty(), "{page} quotes nothing");
    for block in blocks {
        let quoted = lines(block);
        assert!(
            found.iter().any(|source| holds(source, &quoted)),
            "{page} quotes what no source says:\n{block}"
        );
    }
}

#[test]
fn new_op_quotes_its_crate() {
    quotes("docs/new-op.md", &["tests/outside/op", "moe-core/src"]);
}

#[test]
fn new_backend_quotes_its_crate() {
    quotes("docs/new-backend.md", &["tests/outside/backend", "moe-core/src"]);
}

#[test]
fn design_quotes_the_core() {
    quotes("docs/design.md", &["moe-core/src"]);
}

#[test]
fn a_quotation_may_leave_lines_out_but_not_change_them() {
    let source = lines("a\n  b\n\nc\nd");
    assert!(holds(&source, &lines("b\nc")));
    assert!(holds(&source, &lines("a\n// ...\nd")));
    assert!(!holds(&source, &lines("a\nc")));
    assert!(!holds(&source, &lines("d\n// ...\na")));
}
