//! Every exit code of the contract (CLI.md, "Exit codes") as one enum. Scripts rely on them: codes are only ever added.

use crate::words::refusal::Code;

/// How a command ends, unless it passes on another program's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// `doctor`, `cutover verify`: found something.
    Found = 1,
    /// Wrong usage, a bad name.
    Usage = 2,
    /// No such tree, side or path; this directory is in no tree.
    NotFound = 66,
    /// Server or daemon unreachable, or the outcome is unknown.
    Unreachable = 69,
    /// Internal error.
    Internal = 70,
    /// Cannot create: port taken, directory not empty, no /dev/fuse.
    CannotCreate = 73,
    /// Storage: damaged data directory, a flush that failed.
    Storage = 74,
    /// Not now: held, declined, busy, a limit reached, the epoch moved on.
    NotNow = 75,
    /// This identity may not do that; socket or directory of another user.
    Denied = 77,
    /// Configuration is wrong; marker missing, foreign or copied; roots overlap.
    Config = 78,
    /// The lease was lost while the command ran.
    Lost = 79,
    /// The command cannot be run.
    CannotRun = 126,
    /// The command is not found.
    NoCommand = 127,
}

impl Exit {
    /// Every code, in order, for the reference.
    pub const ALL: [Exit; 14] = [
        Exit::Done,
        Exit::Found,
        Exit::Usage,
        Exit::NotFound,
        Exit::Unreachable,
        Exit::Internal,
        Exit::CannotCreate,
        Exit::Storage,
        Exit::NotNow,
        Exit::Denied,
        Exit::Config,
        Exit::Lost,
        Exit::CannotRun,
        Exit::NoCommand,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, in the contract's words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Found => "doctor, cutover verify: found something",
            Exit::Usage => "wrong usage, a bad name",
            Exit::NotFound => "no such tree, side or path (a lower directory that is missing too); this directory is in no tree",
            Exit::Unreachable => "server or daemon unreachable, or the outcome is unknown",
            Exit::Internal => "internal error",
            Exit::CannotCreate => "cannot create: port taken, directory not empty, no /dev/fuse",
            Exit::Storage => "storage: damaged data directory, a flush that failed (the tree ended unclean, the files are named)",
            Exit::NotNow => "not now: held, declined, busy, a limit reached, the epoch moved on",
            Exit::Denied => "this identity may not do that; socket or directory of another user",
            Exit::Config => "configuration is wrong; marker missing, foreign or copied; roots overlap",
            Exit::Lost => "the lease was lost while CMD ran",
            Exit::CannotRun => "CMD cannot be run",
            Exit::NoCommand => "CMD is not found",
        }
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Exit {
        match code {
            Code::Usage => Exit::Usage,
            Code::NotFound => Exit::NotFound,
            Code::Unreachable | Code::OutcomeUnknown => Exit::Unreachable,
            Code::Internal => Exit::Internal,
            Code::CannotCreate => Exit::CannotCreate,
            Code::Storage => Exit::Storage,
            Code::Held | Code::Declined | Code::Busy | Code::Limit | Code::EpochMoved => Exit::NotNow,
            Code::Denied => Exit::Denied,
            Code::Config => Exit::Config,
            Code::Lost => Exit::Lost,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_a_refusal_has_the_exit_that_the_words_give_it() {
        for code in Code::ALL {
            assert_eq!(Exit::from(code).code(), code.exit(), "{code}");
        }
    }

    #[test]
    fn the_codes_are_in_order_and_differ() {
        assert!(Exit::ALL.windows(2).all(|w| w[0].code() < w[1].code()));
    }
}
