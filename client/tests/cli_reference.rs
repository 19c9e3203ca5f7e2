//! `client/CLI.md` is what the help texts say. `UPDATE=1` writes it anew.

mod common;

#[test]
fn the_reference_is_what_the_help_texts_say() {
    let went = common::Side::new().run(&["help", "reference"]);
    assert_eq!(went.code, Some(0), "{went:?}");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/CLI.md");
    if std::env::var_os("UPDATE").is_some_and(|v| v == "1") {
        std::fs::write(file, &went.out).unwrap();
    }
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(written == went.out, "client/CLI.md is not up to date: UPDATE=1 cargo test -p treelease-client --test cli_reference");
}
