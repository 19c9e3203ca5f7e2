//! What server, client and guard mean by the same word. Nothing here decides anything.
//!
//! | word | where |
//! |---|---|
//! | names and ids: tree, side, session, cluster, request key | [`id`] |
//! | epoch, run start: the fencing token | [`epoch`] |
//! | elapsed time, time to live, wall time for people | [`time`], [`clock`] |
//! | what a tree's owner has decided | [`policy`] |
//! | everything that can be asked of the replicated state, and its answers and events | [`command`], [`answer`], [`event`] |
//! | attempts of fence agents | [`fence`] |
//! | how a tree stands, as others see it | [`tree`] |
//! | every reason why the answer is no | [`refusal`] |
//! | a cluster's state as a file | [`backup`] |
//! | the generated messages, and words to wire and back | [`wire`], [`convert`] |
//! | which answer of a call that stays open is whose | [`tags`] |

pub mod answer;
pub mod backup;
pub mod clock;
pub mod command;
pub mod convert;
pub mod epoch;
pub mod event;
pub mod fence;
pub mod id;
pub mod policy;
pub mod refusal;
pub mod tags;
pub mod time;
pub mod tree;
pub mod wire;
