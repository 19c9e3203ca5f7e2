//! Rules that a positive control switches off, to see the damage that they prevent. Nothing but a test sets one.

/// Which rules are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// A call goes to the inode that was looked up before another side's turn, whatever has the name now.
    pub no_second_look: bool,
    /// The kernel cuts a file as it opens it, before it asks whether a program is running from it.
    pub cut_at_open: bool,
    /// A page-cache write of which the storage took a part only is no error.
    pub short_pages: bool,
    /// A page-cache write goes down through the handle that the kernel names.
    pub pages_by_handle: bool,
    /// An old exclusive lock keeps nobody out.
    pub no_lock_check: bool,
    /// What was written through an earlier mount may be renamed into place.
    pub no_earlier_mount: bool,
    /// A dead mount is taken away before the new one stands.
    pub clear_first: bool,
    /// The clock is not read again right before a call that changes the storage.
    pub no_last_look: bool,
    /// What is open already is read as the storage's client has it, without a look at the storage at its first touch in a run.
    pub no_first_touch: bool,
    /// What the storage's client has kept of a file is not dropped at its first open in a run.
    pub no_first_drop: bool,
    /// The kernel is told to forget nothing when a lease comes or goes.
    pub no_forgetting: bool,
    /// Whoever opens a file is given the pages that the kernel has of it, whoever wrote it since.
    pub keep_always: bool,
    /// What was written is left to the kernel until a flush, and nobody waits.
    pub no_write_back: bool,
    /// No rule: files are shed by their names, as where the kernel cannot drop them by their numbers.
    pub no_prune: bool,
}

impl Faults {
    /// As `TREELEASE_TEST_FAULT` names them. Debug builds only.
    pub fn from_env() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        let named = std::env::var("TREELEASE_TEST_FAULT").unwrap_or_default();
        let has = |name: &str| named.split(',').any(|n| n == name);
        Self {
            no_second_look: has("no_second_look"),
            cut_at_open: has("cut_at_open"),
            short_pages: has("short_pages"),
            pages_by_handle: has("pages_by_handle"),
            no_lock_check: has("no_lock_check"),
            no_earlier_mount: has("no_earlier_mount"),
            clear_first: has("clear_first"),
            no_last_look: has("no_last_look"),
            no_first_touch: has("no_first_touch"),
            no_first_drop: has("no_first_drop"),
            no_forgetting: has("no_forgetting"),
            keep_always: has("keep_always"),
            no_write_back: has("no_write_back"),
            no_prune: has("no_prune"),
        }
    }
}
