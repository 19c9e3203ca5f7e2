//! Real programs on a guarded tree: each says and leaves what it does in a bare directory of the same filesystem.

#[path = "story_programs/builds.rs"]
mod builds;
#[path = "story_programs/calls.rs"]
mod calls;
#[path = "story_programs/databases.rs"]
mod databases;
#[path = "story_programs/people.rs"]
mod people;
#[path = "story_programs/version_control.rs"]
mod version_control;
