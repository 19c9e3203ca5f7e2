//! Compilers and package managers.

use treelease_tests::twin::Twin;

/// A crate of its own, without dependencies: build, tests, an incremental build after a change, and nothing to do after that.
#[test]
fn cargo_builds_tests_and_builds_anew_what_has_changed() {
    let twin = Twin::new();
    let said = twin.script(
        r#"
        unset CARGO_TARGET_DIR RUSTFLAGS CARGO_BUILD_TARGET_DIR || true
        mkdir -p work/src work/tests; cd work
        printf '[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n[profile.dev]\ndebug = false\n[profile.test]\ndebug = false\n' > Cargo.toml
        printf 'pub fn twice(n: u32) -> u32 {\n    n * 2\n}\n' > src/lib.rs
        printf 'fn main() {\n    println!("{}", small::twice(21));\n}\n' > src/main.rs
        printf '#[test]\nfn it_is_twice() {\n    assert_eq!(small::twice(2), 4);\n}\n' > tests/it.rs
        cargo build --offline -q; ./target/debug/small
        cargo test --offline -q 2>&1 | grep -c 'test result: ok'
        sed -i 's/n \* 2/n + n + 1/' src/lib.rs
        cargo build --offline -q; ./target/debug/small
        cargo test --offline -q > /dev/null 2>&1 && echo passed || echo failed
        cargo build --offline 2>&1 | grep -c Compiling || true
        "#,
    );
    assert_eq!(said, "42\n4\n43\nfailed\n0\n");
}

/// A virtual environment, a module that is compiled and imported, a zip archive that is imported from.
#[test]
fn python_makes_a_virtual_environment_and_runs_in_it() {
    let twin = Twin::new();
    // Its own pip is unpacked from a file of Python's: some thousand files.
    let pip = if std::env::var_os("TREELEASE_LONG").is_some() { "" } else { "--without-pip" };
    let said = twin.script(&format!(
        r#"
        python3 -m venv {pip} env
        . env/bin/activate
        mkdir -p lib/pack; echo 'def answer(): return 42' > lib/pack/__init__.py
        python -m compileall -q lib
        ls lib/pack/__pycache__ | wc -l
        PYTHONPATH=lib python -c 'import pack, sys; print(pack.answer(), sys.prefix)'
        echo 'def answer(): return 43' > lib/pack/__init__.py; touch -d 2030-01-01 lib/pack/__init__.py
        PYTHONPATH=lib python -c 'import pack; print(pack.answer())'
        ( cd lib; python -m zipfile -c ../pack.zip pack )
        PYTHONPATH=pack.zip python -c 'import pack; print(pack.__file__, pack.answer())'
        test -z "{pip}" && python -m pip --version > /dev/null
        python -c 'import mmap; f = open("mapped", "w+b"); f.truncate(1 << 20); m = mmap.mmap(f.fileno(), 0); m[70000:70004] = b"here"; m.flush(); print(open("mapped", "rb").read().find(b"here"))'
        "#,
        pip = pip
    ).replace("test -z \"--without-pip\" && python -m pip --version > /dev/null", ""));
    assert!(said.contains("42 @/env\n43\n") && said.ends_with("70000\n"), "{said}");
}

/// A package from an archive beside it, locked, installed, removed and installed again by the lock; in the long tier, since it takes
/// npm some seconds.
#[test]
fn npm_installs_from_its_lock_what_it_had_installed() {
    if std::env::var_os("TREELEASE_LONG").is_none() {
        return;
    }
    let twin = Twin::new();
    let said = twin.script(
        r#"
        command -v npm > /dev/null || { echo "this test needs npm (apt-get install npm)" >&2; exit 69; }
        export npm_config_cache="$PLACE/.npm" npm_config_update_notifier=false npm_config_audit=false npm_config_fund=false
        mkdir -p dep/lib app; cd dep
        printf '{"name":"dep","version":"1.0.0","main":"lib/index.js","bin":{"dep-tool":"lib/tool.js"}}' > package.json
        echo 'exports.answer = 42;' > lib/index.js
        printf '#!/usr/bin/env node\nconsole.log("tool");\n' > lib/tool.js
        npm pack --silent --pack-destination ..
        cd ../app
        printf '{"name":"app","version":"1.0.0","scripts":{"tool":"dep-tool"},"dependencies":{"dep":"file:../dep-1.0.0.tgz"}}' > package.json
        npm install --offline --silent
        rm -rf node_modules
        npm ci --offline --silent
        node -e 'console.log(require("dep").answer)'
        npm run --silent tool
        "#,
    );
    assert!(said.ends_with("42\ntool\n"), "{said}");
}
