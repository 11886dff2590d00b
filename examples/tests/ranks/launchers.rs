//! The program under real launchers. Skipped, and said so, where one is not installed.

use crate::processes::{SMALL, good, losses, text, train};
use crate::rig::Folder;
use moe_tests::skipped;
use std::net::TcpListener;
use std::process::Command;

/// The launcher, if it runs here and answers `question`: by the variable's value, or by its own name.
fn launcher(variable: &str, name: &str, question: &str) -> Option<Command> {
    let program = std::env::var(variable).unwrap_or_else(|_| name.to_owned());
    let found = Command::new(&program).arg(question).output().is_ok_and(|output| output.status.success());
    if !found {
        skipped(&format!("train under {name}"), &format!("there is no {name}; {variable} may name one"));
    }
    found.then(|| Command::new(program))
}

/// A port that is free now.
fn port() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port().to_string()
}

/// Two ranks of the launcher do what two of our own do.
fn expect_ours(mut launcher: Command, folder: &Folder) {
    let common = format!("{SMALL} --threads 1 --ep 2 {}", text(&folder.0));
    let out = |name: &str| format!("--out {}", folder.0.join(name).display());
    let ours = format!("{common} --ranks 2 {}", out("ours"));
    let want = losses(&good(&train(&ours).output().expect("processes")));
    launcher.arg(env!("CARGO_BIN_EXE_train"));
    launcher.args(format!("{common} {}", out("theirs")).split_whitespace());
    let got = losses(&good(&launcher.output().expect("processes")));
    assert_eq!(got, want);
}

#[test]
fn torchrun_starts_the_ranks() {
    let Some(mut torchrun) = launcher("MOE_TORCHRUN", "torchrun", "--help") else { return };
    let folder = Folder::new("torchrun");
    torchrun.args([
        // All versions know these names with underscores.
        "--nproc_per_node",
        "2",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        &port(),
        "--no_python",
        // Standard error to a file and to here: PyTorch 1.13 cannot work out its own default under Python 3.11.
        "--redirects",
        "2",
        "--tee",
        "2",
    ]);
    expect_ours(torchrun, &folder);
}

#[test]
fn mpirun_starts_the_ranks() {
    // As root it helps nobody.
    let Some(mut mpirun) = launcher("MOE_MPIRUN", "mpirun", "--version") else { return };
    let folder = Folder::new("mpirun");
    mpirun.env("MOE_PORT", port());
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", "2", "-x", "MOE_PORT"]);
    expect_ours(mpirun, &folder);
}

/// Slurm itself is not here; its environment is.
#[test]
fn the_environment_of_slurm_is_followed() {
    let folder = Folder::new("slurm");
    let common = format!("{SMALL} --threads 1 --ep 2 {}", text(&folder.0));
    let out = |name: &str| format!("--out {}", folder.0.join(name).display());
    let want =
        losses(&good(&train(&format!("{common} --ranks 2 {}", out("ours"))).output().expect("processes")));
    let port = port();
    let rank = |rank: &str| {
        let mut command = train(&format!("{common} {}", out("theirs")));
        command.env("SLURM_PROCID", rank).env("SLURM_NTASKS", "2").env("SLURM_LOCALID", rank);
        command.env("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1").env("SLURM_JOB_ID", "7").env("MOE_PORT", &port);
        command.stdout(std::process::Stdio::piped()).spawn().expect("a process")
    };
    let ranks = ["0", "1"].map(rank).map(|rank| good(&rank.wait_with_output().expect("a process")));
    assert_eq!(losses(&ranks[0]), want);
    assert_eq!(ranks[1], "", "one rank prints");
}
