//! Which fence agents this node knows, and whether each can be run as it lies there.
//!
//! Promises: an agent is an absolute path to an executable file that nobody but its owner, root or this user, may write: it is run
//! with this server's rights. That is checked when the node starts, and again before each run, since the file may be another one by
//! then. It runs nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use treelease_proto::command::Command;
use treelease_proto::time::{format_duration, parse_duration};

/// How long an agent may take if nothing is said: an appliance's management interface takes tens of seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// The limits of what may be said: below, no storage answers; above, nobody waits for it.
const DEADLINES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Longest name of an agent, in bytes.
const NAME_MAX: usize = 63;
/// Most words of a command.
const WORDS_MAX: usize = 64;

/// `[fence.NAME]` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    command: toml::Value,
    deadline: Option<String>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// How long it may take; then it is killed.
    pub deadline: Duration,
}

/// The agents of this node, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agents(BTreeMap<String, Agent>);

impl Agents {
    /// From the tables of a configuration file; what is wrong is named.
    pub fn check(written: BTreeMap<String, Written>) -> Result<Self, String> {
        let mut agents = BTreeMap::new();
        for (name, written) in written {
            let agent = agent(&name, &written).map_err(|why| format!("[fence.{name}]: {why}"))?;
            agents.insert(name, agent);
        }
        Ok(Self(agents))
    }

    /// The agent of that name.
    pub fn get(&self, name: &str) -> Option<&Agent> {
        self.0.get(name)
    }

    /// For people.
    pub fn names(&self) -> String {
        match self.0.is_empty() {
            true => "none".into(),
            false => self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        }
    }

    /// The agent that a command gives to a tree's policy, and that this node does not know.
    pub fn unknown_in<'a>(&self, command: &'a Command) -> Option<&'a str> {
        let (Command::SetPolicy { policy, .. } | Command::AddTree { policy, .. }) = command else { return None };
        let named = policy.iter().filter(|(key, _)| key == "fence").filter_map(|(_, value)| value.strip_prefix("exec:"));
        named.filter(|name| !name.is_empty()).find(|name| self.get(name).is_none())
    }
}

fn agent(name: &str, written: &Written) -> Result<Agent, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
        return Err(format!("use a name of letters, digits, `-`, `_` and `.`, of at most {NAME_MAX} bytes"));
    }
    let how = "`command` is a program's absolute path, or a list of that and its arguments";
    let words = match &written.command {
        toml::Value::String(program) => vec![program.clone()],
        toml::Value::Array(list) => {
            list.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>().ok_or(how)?
        }
        _ => return Err(how.into()),
    };
    if words.len() > WORDS_MAX {
        return Err(format!("`command` has {} words, at most {WORDS_MAX} are taken", words.len()));
    }
    let (program, args) = words.split_first().ok_or(how)?;
    let deadline = match &written.deadline {
        None => DEADLINE,
        Some(text) => parse_duration(text).map_err(|e| format!("`deadline`: {e}"))?,
    };
    if deadline < DEADLINES.0 || deadline > DEADLINES.1 {
        let [least, most] = [DEADLINES.0, DEADLINES.1].map(format_duration);
        return Err(format!("`deadline` must lie within {least} and {most}"));
    }
    let program = PathBuf::from(program);
    usable(&program)?;
    Ok(Agent { program, args: args.to_vec(), deadline })
}

/// Why this file is not run, if it is not.
pub fn usable(program: &Path) -> Result<(), String> {
    let shown = program.display();
    if !program.is_absolute() {
        return Err(format!("the program {shown} must be named by its absolute path"));
    }
    let meta = std::fs::metadata(program).map_err(|e| format!("the program {shown} cannot be found: {e}"))?;
    if !meta.is_file() {
        return Err(format!("the program {shown} is no file"));
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != us {
        return Err(format!("the program {shown} belongs to uid {}: it must belong to root or to uid {us}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("others may write the program {shown}: `chmod go-w` it"));
    }
    match rustix::fs::access(program, rustix::fs::Access::EXEC_OK) {
        Ok(()) if meta.mode() & 0o111 != 0 => Ok(()),
        _ => Err(format!("the program {shown} is not executable: `chmod +x` it")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use treelease_proto::id::TreeId;

    use super::*;

    fn parse(text: &str) -> Result<Agents, String> {
        #[derive(Deserialize)]
        struct File {
            fence: BTreeMap<String, Written>,
        }
        Agents::check(toml::from_str::<File>(text).map_err(|e| e.to_string())?.fence)
    }

    fn program(dir: &Path, mode: u32) -> String {
        let path = dir.join("agent");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn an_agent_is_a_program_with_or_without_arguments_and_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), 0o755);
        let agents = parse(&format!(
            "[fence.nas]\ncommand = [\"{path}\", \"--export\", \"dev\"]\ndeadline = \"30s\"\n[fence.plug]\ncommand = \"{path}\"\n"
        ))
        .unwrap();
        let nas = agents.get("nas").unwrap();
        assert_eq!(
            (nas.args.as_slice(), nas.deadline),
            (&["--export".to_owned(), "dev".to_owned()][..], Duration::from_secs(30))
        );
        assert_eq!((agents.get("plug").unwrap().args.len(), agents.get("plug").unwrap().deadline), (0, DEADLINE));
        assert_eq!((agents.names(), Agents::default().names()), ("nas, plug".to_owned(), "none".to_owned()));
    }

    #[test]
    fn what_cannot_be_run_is_named_with_what_would_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), 0o755);
        for (text, says) in [
            ("command = 5".to_owned(), "absolute path"),
            ("command = []".to_owned(), "absolute path"),
            ("command = [\"/bin/sh\", 5]".to_owned(), "absolute path"),
            ("command = \"agent\"".to_owned(), "absolute path"),
            ("command = \"/nowhere/agent\"".to_owned(), "cannot be found"),
            (format!("command = \"{}\"", dir.path().display()), "is no file"),
            (format!("command = \"{path}\"\ndeadline = \"soon\""), "deadline"),
            (format!("command = \"{path}\"\ndeadline = \"10ms\""), "within 1s and"),
            (format!("command = \"{path}\"\ntimeout = \"1s\""), "timeout"),
            ("deadline = \"1s\"".to_owned(), "command"),
        ] {
            let why = parse(&format!("[fence.nas]\n{text}\n")).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
        for (mode, says) in [(0o775, "go-w"), (0o757, "go-w"), (0o644, "executable")] {
            let path = program(dir.path(), mode);
            let why = parse(&format!("[fence.nas]\ncommand = \"{path}\"\n")).unwrap_err();
            assert!(why.contains("[fence.nas]") && why.contains(says), "{mode:o}: {why}");
        }
        assert!(parse(&format!("[fence.\"n/a\"]\ncommand = \"{path}\"\n")).unwrap_err().contains("letters"));
    }

    #[test]
    fn a_policy_that_names_an_agent_that_is_not_known_here_is_found() {
        let set = |value: &str| Command::SetPolicy { tree: TreeId::random(), policy: vec![("fence".into(), value.into())] };
        let none = Agents::default();
        assert_eq!(none.unknown_in(&set("exec:nas")), Some("nas"));
        for fine in ["manual", "none", "exec:"] {
            assert_eq!(none.unknown_in(&set(fine)), None, "{fine}");
        }
        let dir = tempfile::tempdir().unwrap();
        let agents = parse(&format!("[fence.nas]\ncommand = \"{}\"\n", program(dir.path(), 0o755))).unwrap();
        assert_eq!(agents.unknown_in(&set("exec:nas")), None);
        assert_eq!(agents.unknown_in(&set("exec:other")), Some("other"));
    }
}
