//! Our own sources, read by a program: what the design says about them is so, or a test fails.
//!
//! # Promises
//!
//! The arrows between crates are those of the architecture; each foreign library is named in its one module; the pure cores
//! know no clock, no IO, no randomness and no hash map; every file says what it is for, is named by a module and is short
//! enough to be read; every invariant of `server/SAFETY.md` has a test that names it; every path that a document names exists.
//! *Why this can be believed:* comments and literals are blanked before names are looked for, and each rule is tried on a
//! made-up source that breaks it (the controls at the end).
//!
//! # Does not know
//!
//! Rust's grammar beyond comments, literals and words; what a macro expands to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/source.rs"]
mod source;

use source::{Source, blank, has_word};

/// Longer than this, a file is several ideas. The aim is 500 (STYLE 3.9); this is where a reader gives up.
const LONGEST_FILE: usize = 900;

/// Directory and package of each crate, and the crates of ours that it may depend on (ARCHITECTURE 2.1).
const ARROWS: [(&str, &str, &[&str]); 5] = [
    ("proto", "treelease-proto", &[]),
    ("server", "treelease-server", &["treelease-proto"]),
    ("client", "treelease-client", &["treelease-proto"]),
    ("fuse-guard", "treelease-guard", &["treelease-client"]),
    ("tests", "treelease-tests", &["treelease-proto", "treelease-server", "treelease-client", "treelease-guard"]),
];

/// A name that only some modules may use, and why.
struct Confined {
    what: &'static str,
    found: fn(&Source) -> Vec<usize>,
    homes: &'static [&'static str],
    why: &'static str,
}

const CONFINED: [Confined; 6] = [
    Confined {
        what: "openraft",
        found: |s| s.lines_with("openraft"),
        homes: &["server/src/consensus"],
        why: "consensus can be replaced or simulated only while one module knows it",
    },
    Confined {
        what: "sled",
        found: |s| s.lines_with_but("sled", "store::sled"),
        homes: &["server/src/store"],
        why: "its durability rules (STACK 2.6) are kept in one place",
    },
    Confined {
        what: "redb",
        found: |s| s.lines_with_but("redb", "store::redb"),
        homes: &["server/src/store"],
        why: "its durability rules (STACK 2.6) are kept in one place",
    },
    Confined {
        what: "fuser",
        found: |s| s.lines_with("fuser"),
        homes: &["fuse-guard/src/fuse"],
        why: "the face is thin and dull: what decides must not know the kernel's protocol",
    },
    Confined {
        what: "tonic's server",
        found: |s| s.lines_with_grpc(&["Server"], &["lease_server", "side_server", "raft_server"]),
        homes: &["server/src/api", "fuse-guard/src/daemon/socket.rs"],
        why: "limits, identity and shutdown of a service are set in one place",
    },
    Confined {
        what: "tonic's client",
        found: |s| s.lines_with_grpc(&["Channel", "Endpoint"], &["lease_client", "side_client", "raft_client"]),
        homes: &["client/src/rpc", "client/src/local", "server/src/consensus/network.rs"],
        why: "which endpoint, how often and with what limit is decided in one place",
    },
];

/// The pure cores: commands, time and inputs in, effects out. Their tests may use anything.
const PURE: [&str; 8] = [
    "server/src/lease",
    "server/src/expiry",
    "server/src/fencing/plan.rs",
    "client/src/session",
    "fuse-guard/src/handoff",
    "fuse-guard/src/gate/mod.rs",
    "fuse-guard/src/gate/standing.rs",
    "fuse-guard/src/fs/write_back/plan.rs",
];

/// Documents whose backticked paths must exist.
const DOCUMENTS: [&str; 9] = [
    "README.md",
    "CHANGELOG.md",
    "server/SAFETY.md",
    "deploy/README.md",
    "deploy/fence/README.md",
    "tests/README.md",
    "tests/LONG.md",
    "tests/BENCHMARKS.md",
    "tests/FOUND.md",
];

#[test]
fn only_the_arrows_of_the_architecture_are_drawn_between_crates() {
    let mut wrong = Vec::new();
    for (dir, package, allowed) in ARROWS {
        let manifest = read(&root().join(dir).join("Cargo.toml"));
        for dependency in our_dependencies(&manifest) {
            if dependency != package && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{package} -> {dependency} ({dir}/Cargo.toml)"));
            }
        }
    }
    none(wrong, "arrows that ARCHITECTURE 2.1 does not have");
}

#[test]
fn each_foreign_library_is_named_only_in_its_own_module() {
    let mut wrong = Vec::new();
    for source in product_sources() {
        for rule in &CONFINED {
            if !source.is_test && !source.lies_in(rule.homes) {
                wrong.extend((rule.found)(&source).iter().map(|line| {
                    format!(
                        "{}:{line}: names {}, which belongs to {}: {}",
                        source.path,
                        rule.what,
                        rule.homes.join(", "),
                        rule.why
                    )
                }));
            }
        }
    }
    none(wrong, "names outside their module");
}

#[test]
fn the_pure_cores_know_no_clock_no_io_and_no_randomness() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in product_sources().iter().filter(|s| s.lies_in(&PURE) && !s.is_test) {
        seen += 1;
        wrong.extend(source.impurities());
    }
    assert!(seen >= 4, "the pure cores have moved: only {seen} files found below {PURE:?}");
    none(wrong, "impure names in pure cores");
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let wrong = all_sources().iter().filter(|s| !s.has_header()).map(|s| s.path.clone()).collect();
    none(wrong, "files without a `//!` header");
}

#[test]
fn no_source_file_is_too_long_to_be_read() {
    let wrong = all_sources()
        .iter()
        .filter_map(|s| {
            let lines = s.text.lines().count();
            (lines > LONGEST_FILE).then(|| format!("{}: {lines} lines, at most {LONGEST_FILE}", s.path))
        })
        .collect();
    none(wrong, "files that are several ideas");
}

#[test]
fn every_source_file_is_named_by_a_module() {
    let sources: BTreeMap<String, Source> = all_sources().into_iter().map(|s| (s.path.clone(), s)).collect();
    let wrong = sources.keys().filter(|path| !is_named(path, &sources)).cloned().collect();
    none(wrong, "files that no `mod` names, so that nothing compiles them");
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_switched_off() {
    let wrong = all_sources().iter().flat_map(Source::leftovers).collect();
    none(wrong, "leftovers");
}

#[test]
fn every_invariant_of_the_safety_argument_has_a_test_that_names_it() {
    let safety = read(&root().join("server/SAFETY.md"));
    let invariants = invariants_of(&safety);
    let expected: BTreeSet<String> = (1..=8).map(|n| format!("I{n}")).collect();
    assert_eq!(invariants, expected, "server/SAFETY.md has one section `## I1 …` to `## I8 …` each");
    let tests: Vec<String> =
        all_sources().into_iter().filter(|s| s.path != "tests/tests/tidy.rs").map(|s| s.test_text().to_owned()).collect();
    let wrong = invariants.into_iter().filter(|name| !tests.iter().any(|text| names_invariant(text, name))).collect();
    none(wrong, "invariants that no test names");
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let text = read(&root().join(document));
        for path in paths_named_in(&text) {
            let beside = Path::new(document).parent().unwrap_or(Path::new("")).join(&path);
            if !root().join(&path).exists() && !root().join(beside).exists() {
                wrong.push(format!("{document}: `{path}`"));
            }
        }
    }
    none(wrong, "paths that do not exist");
}

// Controls: the rules find what breaks them.

#[test]
fn a_name_in_a_comment_or_a_literal_is_no_use_of_it() {
    let source = Source::of(
        "server/src/api/x.rs",
        "//! openraft\n/* sled /* fuser */ */ const A: &str = \"openraft\";\nconst B: &str = r#\"sled \"x\" \"#; const C: char = '\"'; fn f<'a>(x: &'a str) {}\nuse openraft::Raft;\n",
    );
    assert_eq!(source.lines_with("openraft"), [4]);
    assert!(source.lines_with("sled").is_empty());
    let ours = Source::of("server/src/consensus/x.rs", "use crate::store::sled::SledBackend;\nuse sled::Db;\n");
    assert_eq!((CONFINED[1].found)(&ours), [2], "our own module of that name is not the library");
    assert!(source.lines_with("fuser").is_empty());
    assert_eq!(source.lines_with("str"), [2, 3], "what is not blanked stays");
}

#[test]
fn a_grpc_server_is_found_however_it_is_imported() {
    for text in [
        "use tonic::transport::Server;",
        "use tonic::{Status, transport::{Channel, Server}};",
        "fn f() { tonic::transport::Server::builder(); }",
        "use treelease_proto::wire::lease_server::LeaseServer;",
    ] {
        assert_eq!((CONFINED[4].found)(&Source::of("x.rs", text)), [1], "{text}");
    }
    assert!((CONFINED[4].found)(&Source::of("x.rs", "use crate::Server; use tonic::Status;")).is_empty());
}

#[test]
fn impure_names_are_found_in_a_core_but_not_in_its_tests() {
    let bad = Source::of(
        "server/src/lease/x.rs",
        "use std::collections::HashMap;\nlet t = std::time::Instant::now();\nstd::fs::read(p);\n",
    );
    assert_eq!(bad.impurities().len(), 3);
    let good = Source::of("server/src/lease/x.rs", "use std::fmt;\n#[cfg(test)]\nmod tests { use std::collections::HashMap; }\n");
    assert!(good.impurities().is_empty());
    assert!(Source::of("server/src/lease/tests/explore.rs", "").is_test);
    assert!(Source::of("server/src/expiry/tests.rs", "").is_test);
}

#[test]
fn a_forbidden_arrow_is_seen_in_every_section_of_a_manifest() {
    let manifest = "[package]\nname = \"treelease-proto\"\n[dependencies]\ntreelease-server.workspace = true\n[dev-dependencies]\ntreelease-client = { path = \"../client\" }\n[target.'cfg(unix)'.dependencies]\n\"treelease-guard\" = \"1\"\n[lints]\n";
    assert_eq!(our_dependencies(manifest), ["treelease-server", "treelease-client", "treelease-guard"]);
}

#[test]
fn a_switched_off_test_is_found_but_a_word_about_it_is_not() {
    let marker = ["#[ig", "nore]"].concat();
    assert_eq!(Source::of("x.rs", &format!("//! x\n{marker}\nfn f() {{}}\n")).leftovers().len(), 1);
    assert_eq!(Source::of("x.rs", &format!("//! x\n// {}: later\n", ["TO", "DO"].concat())).leftovers().len(), 1);
    assert!(Source::of("x.rs", "//! Mastodon\nfn methodology() {}\n").leftovers().is_empty());
}

// Helpers.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn none(wrong: Vec<String>, what: &str) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

/// Every Rust file of the five crates.
fn all_sources() -> Vec<Source> {
    let mut files = Vec::new();
    for (dir, ..) in ARROWS {
        walk(&root().join(dir), &mut files);
    }
    assert!(files.len() > 20, "the sources have moved: only {} files found", files.len());
    files.sort();
    let here = root();
    files
        .iter()
        .map(|file| Source::of(&file.strip_prefix(&here).expect("below the root").to_string_lossy(), &read(file)))
        .collect()
}

/// What is built into the executables: `src/` of the crates that are not the tests.
fn product_sources() -> Vec<Source> {
    all_sources().into_iter().filter(|s| !s.path.starts_with("tests/") && s.path.contains("/src/")).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The crates of ours that a manifest depends on, in any of its dependency sections.
fn our_dependencies(manifest: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            in_dependencies = section.ends_with("dependencies");
            if let Some((_, name)) = section.rsplit_once("dependencies.") {
                found.extend(name.starts_with("treelease-").then(|| name.to_owned()));
            }
        } else if in_dependencies {
            let name = line.split(['=', '.', ' ']).next().unwrap_or("").trim_matches('"');
            found.extend(name.starts_with("treelease-").then(|| name.to_owned()));
        }
    }
    found
}

/// Whether some module declares the file: `mod NAME` in its parent, or Cargo finds it by itself.
fn is_named(path: &str, sources: &BTreeMap<String, Source>) -> bool {
    let (dir, file) = path.rsplit_once('/').expect("below a crate");
    let name = file.trim_end_matches(".rs");
    let is_crate_root = path.ends_with("/build.rs")
        || path.ends_with("/src/lib.rs")
        || path.ends_with("/src/main.rs")
        || dir.ends_with("/src/bin")
        || (dir.contains("/src/bin/") && file == "main.rs")
        || (!dir.contains("/src") && (dir.ends_with("/tests") || dir.ends_with("/benches") || dir.ends_with("/examples")));
    if is_crate_root {
        return true;
    }
    let (module, parent_dir) = if file == "mod.rs" {
        let (parent, module) = dir.rsplit_once('/').expect("below a crate");
        (module, parent)
    } else {
        (name, dir)
    };
    let parents = [
        format!("{parent_dir}/mod.rs"),
        format!("{parent_dir}/lib.rs"),
        format!("{parent_dir}/main.rs"),
        format!("{parent_dir}.rs"),
    ];
    let declares = |s: &Source| {
        blank(&s.text).split("mod ").skip(1).any(|rest| rest.split([';', ' ', '{']).next().is_some_and(|n| n.trim() == module))
            || s.text.contains(&format!("/{file}\"]"))
    };
    let beside = || {
        sources.values().any(|s| s.path.starts_with(&format!("{parent_dir}/")) && s.text.contains(&format!("path = \"{file}\"")))
    };
    let integration = !dir.contains("/src") && sources.values().any(|s| is_integration_root(&s.path) && declares(s));
    parents.iter().filter_map(|p| sources.get(p)).any(declares) || integration || beside()
}

fn is_integration_root(path: &str) -> bool {
    path.split('/').rev().nth(1).is_some_and(|dir| dir == "tests" || dir == "benches") && !path.contains("/src/")
}

/// `I4` as a word, or a test called `i4_…`.
fn names_invariant(text: &str, name: &str) -> bool {
    has_word(text, name) || text.contains(&format!("fn {}_", name.to_lowercase()))
}

/// The invariants that have a section of their own.
fn invariants_of(safety: &str) -> BTreeSet<String> {
    safety
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter_map(|title| title.split([' ', ':', '.']).next())
        .filter(|name| name.starts_with('I') && name[1..].parse::<u8>().is_ok())
        .map(str::to_owned)
        .collect()
}

/// Backticked words that look like a path of this repository.
fn paths_named_in(document: &str) -> Vec<String> {
    let looks_like_path = |word: &&str| {
        let tops =
            ["proto/", "server/", "client/", "fuse-guard/", "tests/", "deploy/", ".ci/", ".config/", "./deploy/", "./tests/"];
        tops.iter().any(|top| word.starts_with(top))
            && word.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '/' | '-' | '_'))
    };
    document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_whitespace().next())
        .filter(looks_like_path)
        .map(str::to_owned)
        .collect()
}
