//! Files of which pages were refused that the kernel had taken from a mapping: the process that stored into them learns nothing, so
//! somebody else is told their names.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::sync::lock;

/// Names that are kept until they are told; of more files it is told that there were pages.
const NAMED: usize = 16;

/// The names.
#[derive(Default)]
pub struct LateFiles(Mutex<BTreeSet<String>>);

impl LateFiles {
    /// A page of this file was refused.
    pub fn note(&self, path: String) {
        let mut names = lock(&self.0);
        if names.len() < NAMED {
            names.insert(path);
        }
    }

    /// Those that have come since this was asked last.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0)).into_iter().collect()
    }
}
