//! Words to wire and back.
