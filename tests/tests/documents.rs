//! The configurations that documents show are taken as they stand, so that a reader may copy them.
//!
//! Does not know whether what they name is there: directories, servers.

use std::fs;
use std::path::{Path, PathBuf};

use treelease_client::config::{Config, Env, Overrides};
use treelease_server::config::Flags;

#[test]
fn the_example_configuration_of_a_side_is_taken() {
    let config = side(&repository().join("deploy/config/example.toml"));
    assert_eq!(config.side().expect("a side").as_str(), "workstation");
    assert_eq!(config.mounts.len(), 1);
    assert_eq!(config.mounts[0].at, Path::new("/mnt/nas/dev"));
}

#[test]
fn the_configuration_that_the_readme_shows_is_taken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    fs::write(&file, block(&read("README.md"), "toml")).expect("a written file");
    let config = side(&file);
    assert_eq!(config.side().expect("a side").as_str(), "pod");
    assert_eq!(config.mounts.len(), 1);
}

#[test]
fn the_example_configuration_of_a_server_is_taken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("server.toml");
    fs::write(&file, read("deploy/config/server.toml")).expect("a written file");
    fs::write(dir.path().join("token"), "secret\n").expect("a written token");
    let flags = Flags { config: Some(file), ..Flags::default() };
    let config = treelease_server::config::Config::load(flags).expect("a configuration without faults");
    assert_eq!(config.node_id, 1);
    assert!(config.token.is_some(), "the token lies beside the file that names it");
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_so_the_others_prove_something() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    fs::write(&file, "side = \"pod\"\nendpoint = \"http://127.0.0.1:7420\"\n").expect("a written file");
    let failure = Config::load(&given(&file), &Env::from_process()).expect_err("an unknown key");
    assert!(failure.message.contains("endpoint"), "{}", failure.message);
}

#[test]
fn each_paragraph_of_the_semantics_is_the_doc_comment_of_the_test_that_it_names() {
    let paragraphs = paragraphs(&read("fuse-guard/SEMANTICS.md"));
    assert!(paragraphs.len() > 50, "the document has moved: only {} paragraphs", paragraphs.len());
    let wrong: Vec<String> = paragraphs.iter().filter_map(|p| differs(p, &read(&named_in(p).1.to_string_lossy()))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_paragraph_that_its_test_does_not_say_is_found_so_the_others_prove_something() {
    let source = "/// It is\n/// so.\n#[test]\nfn it_is() {}\n";
    assert_eq!(differs("It is so. (`x.rs`: `it_is`)", source), None);
    assert!(differs("It is not so. (`x.rs`: `it_is`)", source).is_some());
    assert!(differs("It is so. (`x.rs`: `it_was`)", source).is_some());
    assert!(differs("It is so. (`x.rs`: `it_is`)", "#[test]\nfn it_is() {}\n").is_some());
}

/// Its paragraphs, each as one line, without headings and introduction.
fn paragraphs(document: &str) -> Vec<String> {
    let all = document.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    all.filter(|text| !text.is_empty() && !text.starts_with('#')).skip(1).collect()
}

/// What it says, in which file, and in which test's comment.
fn named_in(paragraph: &str) -> (&str, &Path, &str) {
    let named = paragraph.rsplit_once(" (`").and_then(|(text, named)| {
        let (file, test) = named.strip_suffix("`)")?.split_once("`: `")?;
        Some((text, Path::new(file), test))
    });
    named.unwrap_or_else(|| panic!("it names no test: {paragraph}"))
}

fn differs(paragraph: &str, source: &str) -> Option<String> {
    let (text, file, test) = named_in(paragraph);
    let above = source.split_once(&format!("fn {test}(")).map_or("", |(above, _)| above);
    let comment: Vec<&str> = above
        .lines()
        .rev()
        .map(str::trim)
        .skip_while(|line| line.is_empty() || line.starts_with("#["))
        .map_while(|line| line.strip_prefix("///"))
        .map(str::trim)
        .collect();
    let said = comment.into_iter().rev().collect::<Vec<_>>().join(" ");
    (said != text).then(|| format!("{}: {test} says {said:?}, not {text:?}", file.display()))
}

fn side(file: &Path) -> Config {
    Config::load(&given(file), &Env::from_process()).unwrap_or_else(|e| panic!("{}: {}", file.display(), e.message))
}

fn given(file: &Path) -> Overrides {
    Overrides { config: Some(file.to_owned()), ..Overrides::default() }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The first fenced block of that language.
fn block(document: &str, language: &str) -> String {
    let from = document.split_once(&format!("```{language}\n")).expect("such a block").1;
    from.split_once("```").expect("its end").0.to_owned()
}
