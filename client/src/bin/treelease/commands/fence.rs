//! `treelease fence`.

use std::time::Duration;

use clap::Subcommand;
use treelease_client::error::Failure;
use treelease_client::words::command::{Answer, AttemptRef, Command};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{SideName, TreeId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::TreeStatus;

use crate::cli::DryRun;
use crate::ctx::{Ctx, about, actor, find};

/// How often the end of a test is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// How often at most: longer than the longest deadline of an agent, an hour, with a change of leader in it.
const LOOKS_MAX: u32 = 2 * 4 * 3600;

/// Make sure, or vouch, that an old holder cannot write any more
///
/// A lease that ended unclean while its holder was writing is passed on to another side only when its fence has succeeded: a
/// person's word (`fence=manual`), or a program of the servers (`fence=exec:NAME`, a `[fence.NAME]` in their configuration).
#[derive(clap::Args, Debug)]
pub struct FenceArgs {
    #[command(subcommand)]
    command: FenceCommand,
}

#[derive(Subcommand, Debug)]
enum FenceCommand {
    /// Vouch that the old holder cannot write any more
    ///
    /// Only after its machine is off, its mount is gone, or its export is withdrawn: the next holder is granted at once, and
    /// pages that the old one still sends would land on top of its work. It is recorded with your name.
    Confirm(ConfirmArgs),
    /// Try a tree's fence agent, without fencing anybody
    ///
    /// The leading server runs it with the verb `test`. Says how it ended: 0 where it succeeded, else 1.
    Test(TestArgs),
    /// Give a fenced side its access back
    ///
    /// A side that a fence agent was run against gets nothing of the tree until this. Only after its machine was restarted, or when its
    /// mount of the storage was taken away and made anew: what it had not sent before would land on top of the others' work. The
    /// agent is run with the verb `unfence`, again and again until it succeeds; `treelease history` tells how it goes.
    ///
    /// With the policy `unfence=restart` a restart is enough, which its daemon tells by itself where it knows the machine (not in a
    /// container). Only where no two machines have one machine-id at a time: no clones, and none that is started anew on another host
    /// while its first host may only be cut off. There two sides would write.
    Unfence(UnfenceArgs),
    /// For fence agents: whether this attempt still stands
    ///
    /// Asked right before the agent acts, of a majority of the servers. 0: act now. 75: do nothing, and exit 75. Anything else: it is
    /// not known; do nothing, and exit 75. What is not given is taken from the environment that the agent was started with.
    StillWanted(StillWantedArgs),
}

#[derive(clap::Args, Debug)]
struct ConfirmArgs {
    /// The tree, by name
    tree: TreeName,
    /// The epoch whose unclean end is waited out (`treelease status` names it)
    #[arg(long, value_name = "N")]
    epoch: u64,
    /// Why that is sure, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

#[derive(clap::Args, Debug)]
struct TestArgs {
    /// The tree, by name
    tree: TreeName,
    /// Whom the agent is told [default: who held the tree last, else this side]
    #[arg(long = "on", value_name = "SIDE")]
    tried_on: Option<SideName>,
    #[command(flatten)]
    dry: DryRun,
}

#[derive(clap::Args, Debug)]
struct UnfenceArgs {
    /// The tree, by name
    tree: TreeName,
    /// The fenced side (`treelease status` names it)
    #[arg(value_name = "SIDE")]
    fenced: SideName,
    /// Why it is sure that nothing from before can come any more, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// You have given it its access back already: no agent is run
    #[arg(long)]
    by_hand: bool,
    #[command(flatten)]
    dry: DryRun,
}

#[derive(clap::Args, Debug)]
struct StillWantedArgs {
    /// The tree's id
    #[arg(long, value_name = "ID", env = "TREELEASE_FENCE_TREE_ID", hide_env_values = true)]
    tree_id: TreeId,
    /// The side that the agent acts on
    #[arg(long = "on", value_name = "SIDE", env = "TREELEASE_FENCE_SIDE", hide_env_values = true)]
    acted_on: SideName,
    /// The epoch whose unclean end it was
    #[arg(long, value_name = "N", env = "TREELEASE_FENCE_EPOCH", hide_env_values = true)]
    epoch: u64,
    /// The attempt's number
    #[arg(long, value_name = "N", env = "TREELEASE_FENCE_ATTEMPT", hide_env_values = true)]
    attempt: u32,
}

/// Carries it out.
pub async fn run(ctx: &Ctx, args: FenceArgs) -> Result<u8, Failure> {
    match args.command {
        FenceCommand::Confirm(args) => confirm(ctx, args).await,
        FenceCommand::Test(args) => test(ctx, args).await,
        FenceCommand::Unfence(args) => unfence(ctx, args).await,
        FenceCommand::StillWanted(args) => still_wanted(ctx, args).await,
    }
}

async fn confirm(ctx: &Ctx, args: ConfirmArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
    let tree = find(&status, &args.tree)?;
    let side = tree.ended_side.as_ref().map_or("the old holder", |s| s.as_str());
    if args.dry.dry_run {
        ctx.ui.would(format!("vouch that {side} cannot write to \"{}\" any more (epoch {})", tree.name, args.epoch));
        return Ok(0);
    }
    let command = Command::FenceConfirm { tree: tree.id.clone(), epoch: Epoch::from_raw(args.epoch), reason: args.reason };
    ctx.change(&config, &servers, command).await?;
    ctx.ui.say(format!("Recorded: {side} cannot write to \"{}\" any more. The next side is granted now.", tree.name));
    Ok(0)
}

async fn test(ctx: &Ctx, args: TestArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
    let tree = find(&status, &args.tree)?;
    let side = match args.tried_on.or_else(|| tree.run_side.clone()) {
        Some(side) => side,
        None => config.side()?,
    };
    if args.dry.dry_run {
        ctx.ui.would(format!("try the fence agent of \"{}\" ({}) on {side}", tree.name, tree.policy.fence));
        return Ok(0);
    }
    ctx.change(&config, &servers, Command::FenceTest { tree: tree.id.clone(), side }).await?;
    // Its end comes as an event, at its deadline at the latest; servers that are away meanwhile are asked again.
    let me = actor(&config);
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK).await;
        let Ok(history) = servers.history(&tree.id, 0).await else { continue };
        let since = history.iter().filter(|event| event.revision > status.revision);
        // One is tried at a time: the first end after our own begin is its.
        let mut tests = since.filter_map(|event| Some((event.reason.strip_prefix("test: the agent ")?, &event.actor)));
        let ours = tests.find(|(what, who)| what.starts_with('`') && **who == me);
        if let Some((how, _)) = ours.and_then(|_| tests.find(|(what, _)| !what.starts_with('`'))) {
            ctx.ui.say(format!("The agent {how}."));
            return Ok(u8::from(!how.starts_with("succeeded")));
        }
    }
    Err(Failure::new(Code::OutcomeUnknown, "no server has told how the test ended")
        .hint(format!("`treelease history {}`", tree.name)))
}

async fn unfence(ctx: &Ctx, args: UnfenceArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
    let tree = find(&status, &args.tree)?;
    let side = &args.fenced;
    let fenced = tree.fenced.iter().find(|fenced| fenced.side == *side).ok_or_else(|| not_fenced(tree, side))?;
    let how = if args.by_hand { "without its agent".into() } else { format!("by the agent `{}`", fenced.agent) };
    if args.dry.dry_run {
        ctx.ui.would(format!("give {side} its access to \"{}\" back, {how} (fenced after epoch {})", tree.name, fenced.epoch));
        return Ok(0);
    }
    let (tree_id, reason, by_hand) = (tree.id.clone(), args.reason, args.by_hand);
    let command = Command::Unfence { tree: tree_id, side: side.clone(), epoch: fenced.epoch, reason, by_hand };
    ctx.change(&config, &servers, command).await?;
    if by_hand {
        ctx.ui.say(format!("Recorded: {side} has its access to \"{}\" back.", tree.name));
    } else {
        ctx.ui.say(format!("Recorded: the agent `{}` gives {side} its access to \"{}\" back.", fenced.agent, tree.name));
        ctx.ui.hint(format!("see how it went with `treelease history {}`", tree.name));
    }
    Ok(0)
}

fn not_fenced(tree: &TreeStatus, side: &SideName) -> Failure {
    let failure = Failure::new(Code::NotFound, format!("{side} is not fenced on \"{}\"", tree.name));
    let fenced: Vec<&str> = tree.fenced.iter().map(|fenced| fenced.side.as_str()).collect();
    if fenced.is_empty() { failure } else { failure.hint(format!("fenced there: {}", fenced.join(", "))) }
}

async fn still_wanted(ctx: &Ctx, args: StillWantedArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let epoch = Epoch::from_raw(args.epoch);
    let attempt = AttemptRef { tree: args.tree_id, side: args.acted_on, epoch, number: args.attempt };
    match servers.do_command(&actor(&config), None, Command::FenceStands { attempt }).await?.accepted()? {
        Answer::Done => Ok(0),
        Answer::Ignored { why } => Err(Failure::new(Code::EpochMoved, why)),
        other => Err(Failure::new(Code::Internal, format!("the server answered with {other:?}"))),
    }
}
