//! `treelease version`.

use serde_json::json;
use treelease_client::error::Failure;

use crate::ctx::Ctx;

/// Versions of this command, the daemon and the kernel
#[derive(clap::Args, Debug)]
pub struct VersionArgs {}

/// Shows them. It never fails for want of a daemon or a configuration: it is what a bug report begins with.
pub async fn run(ctx: &Ctx, _args: VersionArgs) -> Result<u8, Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let daemon = match ctx.config() {
        Ok(config) => match ctx.running(&config).await {
            Ok(Some(mut daemon)) => daemon.report().await.ok().map(|r| r.daemon_version),
            _ => None,
        },
        Err(_) => None,
    };
    let fits = daemon.as_deref().is_none_or(|theirs| works_together(ours, theirs));
    if ctx.ui.json {
        ctx.ui.object(&json!({"schema": 1, "command": ours, "daemon": daemon, "kernel": kernel, "compatible": fits}));
        return Ok(0);
    }
    ctx.ui.data(format!("treelease {ours}"));
    ctx.ui.data(format!("daemon {}", daemon.as_deref().unwrap_or("does not run")));
    ctx.ui.data(format!("kernel {kernel}"));
    if !fits {
        ctx.ui.warn("the daemon's version is more than one minor version away");
        ctx.ui.hint("replace it by the installed version with `treelease up --restart`");
    }
    Ok(0)
}

/// One minor version apart works.
fn works_together(a: &str, b: &str) -> bool {
    let parts = |v: &str| {
        let mut numbers = v.split(['.', '-']).map(|n| n.parse::<u64>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    };
    let (a, b) = (parts(a), parts(b));
    a.0 == b.0 && a.1.abs_diff(b.1) <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_one_minor_apart_work_together() {
        assert!(works_together("0.1.0", "0.2.9"));
        assert!(!works_together("0.1.0", "0.3.0"));
        assert!(!works_together("1.0.0", "2.0.0"));
    }
}
