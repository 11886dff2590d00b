//! Launch: which rank this process is, and where the ranks meet, from what its launcher has put into the environment.
//!
//! | | torchrun and alike | Open MPI | Slurm |
//! | --- | --- | --- | --- |
//! | rank | `RANK` | `OMPI_COMM_WORLD_RANK` | `SLURM_PROCID` |
//! | size | `WORLD_SIZE` | `OMPI_COMM_WORLD_SIZE` | `SLURM_NTASKS` |
//! | local rank | `LOCAL_RANK` | `OMPI_COMM_WORLD_LOCAL_RANK` | `SLURM_LOCALID` |
//! | run | `TORCHELASTIC_RUN_ID` | `PMIX_NAMESPACE` | `SLURM_JOB_ID`.`SLURM_STEP_ID` |
//! | address, if there is no `MASTER_ADDR` | | 127.0.0.1 if all ranks are local | `SLURM_LAUNCH_NODE_IPADDR` |
//!
//! The first launcher whose rank is there is taken. The port is `MOE_PORT`; without it `MASTER_PORT`, or the next one where
//! torchrun's own store listens on that (`TORCHELASTIC_USE_AGENT_STORE` is `True`). `MOE_RUN` goes before
//! the launcher's run. The key is in `MOE_KEY` (64 hexadecimal digits) or in the file that `MOE_KEY_FILE` names. `MOE_ENCRYPT=1`
//! encrypts frames on the loopback as well; with `MOE_TCP=1` ranks of one host, too, exchange theirs over TCP.

use crate::key::Key;
use moe_core::ConfigError;
use std::net::TcpListener;
use std::ops::Range;

/// A process's part in a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// this process
    pub rank: usize,
    /// number of processes
    pub size: usize,
    /// this process among those of its host: which device it takes
    pub local_rank: usize,
    /// host name or address where rank 0 can be reached
    pub address: String,
    /// port of rank 0 to meet at
    pub port: u16,
    /// what tells this run from others; equal for all ranks
    pub run: String,
    /// must be given if `address` is not of this host's loopback
    pub key: Option<Key>,
    /// encrypt frames on the loopback too
    pub encrypt: bool,
    /// frames take TCP between ranks of one host too, where they would take Unix sockets
    pub tcp: bool,
}

/// Below what Linux, the BSDs and IANA give out.
const PORTS: Range<u16> = 15_000..32_768;

const LAUNCHERS: [[&str; 3]; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

impl Launch {
    /// From this process's environment; `None` if no launcher has started it.
    ///
    /// # Errors
    /// [`ConfigError`] that names the variable that is missing or wrong.
    pub fn from_env() -> Result<Option<Self>, ConfigError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// From variables by name.
    ///
    /// # Errors
    /// [`ConfigError`] that names the variable that is missing or wrong.
    pub fn from_variables(of: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let of = |name: &str| of(name).filter(|value| !value.is_empty());
        let Some(launcher) = LAUNCHERS.iter().find(|[rank, ..]| of(rank).is_some()) else {
            return Ok(None);
        };
        let [rank_name, size_name, local_name] = *launcher;
        let size = number(&of, size_name, usize::MAX)?;
        let rank = number(&of, rank_name, size.saturating_sub(1))?;
        let local_rank = if of(local_name).is_some() { number(&of, local_name, rank)? } else { 0 };
        let slurm = rank_name == "SLURM_PROCID";
        let alone = rank_name == "OMPI_COMM_WORLD_RANK" && of("OMPI_COMM_WORLD_LOCAL_SIZE") == of(size_name);
        let address = of("MASTER_ADDR")
            .or_else(|| of("SLURM_LAUNCH_NODE_IPADDR").filter(|_| slurm))
            .or_else(|| alone.then(|| "127.0.0.1".into()))
            .ok_or_else(|| missing("MASTER_ADDR", "set it to where rank 0 can be reached"))?;
        let step = |job: String| job + "." + &of("SLURM_STEP_ID").unwrap_or_default();
        let run = of("MOE_RUN")
            .or_else(|| of("TORCHELASTIC_RUN_ID"))
            .or_else(|| of("PMIX_NAMESPACE"))
            .or_else(|| of("SLURM_JOB_ID").filter(|_| slurm).map(step))
            .unwrap_or_default();
        let is_on = |name: &str| of(name).is_some_and(|value| value != "0");
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            address,
            port: port(&of)?,
            run,
            key: key(&of)?,
            encrypt: is_on("MOE_ENCRYPT"),
            tcp: is_on("MOE_TCP"),
        }))
    }

    /// `size` processes of this host, with a new key and a port that is free now.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no free port or no randomness.
    pub fn local(size: usize) -> Result<Vec<Self>, ConfigError> {
        let port = free_port()?;
        let run = Key::random()?.to_hex()[..16].into();
        let one = Self {
            rank: 0,
            size,
            local_rank: 0,
            address: "127.0.0.1".into(),
            port,
            run,
            key: Some(Key::random()?),
            encrypt: false,
            tcp: false,
        };
        Ok((0..size).map(|rank| Self { rank, local_rank: rank, ..one.clone() }).collect())
    }

    /// The variables from which [`from_env`](Self::from_env) makes this value in another process.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.size.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("MASTER_ADDR", self.address.clone()),
            ("MOE_PORT", self.port.to_string()),
            ("MOE_RUN", self.run.clone()),
        ];
        variables.extend(self.key.iter().map(|key| ("MOE_KEY", key.to_hex())));
        variables.extend(self.encrypt.then(|| ("MOE_ENCRYPT", "1".into())));
        variables.extend(self.tcp.then(|| ("MOE_TCP", "1".into())));
        variables
    }
}

/// A port of the loopback that is free now. None of those that a system gives to connections and to listeners that ask for any, which could
/// take it before rank 0 does.
fn free_port() -> Result<u16, ConfigError> {
    let none = |wanted| ConfigError { field: "port", got: format!("{PORTS:?}"), wanted };
    let mut last = String::new();
    for _ in 0..100 {
        let any = getrandom::u32().map_err(|error| none(format!("the system has no randomness: {error}")))?;
        let port = PORTS.start + (any % u32::from(PORTS.end - PORTS.start)) as u16;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error.to_string(),
        }
    }
    Err(none(format!("none is free on 127.0.0.1: {last}")))
}

fn missing(field: &'static str, wanted: &str) -> ConfigError {
    ConfigError { field, got: "not set".into(), wanted: wanted.into() }
}

fn number(
    of: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    most: usize,
) -> Result<usize, ConfigError> {
    let got = of(name).ok_or_else(|| missing(name, "the launcher has to set it"))?;
    let wrong = |got| ConfigError { field: name, got, wanted: format!("must be a number up to {most}") };
    got.parse().ok().filter(|&value| value <= most).ok_or_else(|| wrong(got))
}

fn port(of: &impl Fn(&str) -> Option<String>) -> Result<u16, ConfigError> {
    if of("MOE_PORT").is_some() {
        return Ok(number(of, "MOE_PORT", usize::from(u16::MAX))? as u16);
    }
    if of("MASTER_PORT").is_none() {
        return Err(missing("MOE_PORT", "set it, for all ranks alike, to a free port of rank 0"));
    }
    let agent = of("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    let most = usize::from(u16::MAX) - usize::from(agent);
    Ok(number(of, "MASTER_PORT", most)? as u16 + u16::from(agent))
}

fn key(of: &impl Fn(&str) -> Option<String>) -> Result<Option<Key>, ConfigError> {
    if let Some(digits) = of("MOE_KEY") {
        return Key::from_hex(digits.trim()).map(Some);
    }
    let Some(file) = of("MOE_KEY_FILE") else { return Ok(None) };
    let read = std::fs::read_to_string(&file);
    let unread = |error| ConfigError {
        field: "MOE_KEY_FILE",
        got: file,
        wanted: format!("it cannot be read: {error}"),
    };
    Key::from_hex(read.map_err(unread)?.trim()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>, ConfigError> {
        let of =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        Launch::from_variables(of)
    }

    fn error(variables: &[(&str, &str)]) -> String {
        launch(variables).unwrap_err().to_string()
    }

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RUN_ID", "job"),
    ];

    #[test]
    fn torchrun_sets_all() {
        let got = launch(&TORCHRUN).unwrap().unwrap();
        assert_eq!((got.rank, got.size, got.local_rank), (3, 4, 1));
        assert_eq!((got.address.as_str(), got.port, got.run.as_str()), ("node0", 29500, "job"));
        assert_eq!(got.key, None);
    }

    #[test]
    fn the_port_is_not_the_one_that_torchruns_agent_listens_on() {
        let agent = ("TORCHELASTIC_USE_AGENT_STORE", "True");
        assert_eq!(launch(&[&TORCHRUN[..], &[agent]].concat()).unwrap().unwrap().port, 29501);
        let own = ("MOE_PORT", "7000");
        assert_eq!(launch(&[&TORCHRUN[..], &[agent, own]].concat()).unwrap().unwrap().port, 7000);
        assert!(error(&[&[("MASTER_PORT", "65535"), agent][..], &TORCHRUN].concat()).contains("65534"));
    }

    #[test]
    fn mpirun_on_one_host_needs_only_a_port() {
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "prterun-1"),
        ];
        assert!(error(&mpi).contains("MOE_PORT is not set"), "{}", error(&mpi));
        let got = launch(&[&mpi[..], &[("MOE_PORT", "7000")]].concat()).unwrap().unwrap();
        assert_eq!((got.rank, got.size, got.local_rank, got.port), (1, 2, 1, 7000));
        assert_eq!((got.address.as_str(), got.run.as_str()), ("127.0.0.1", "prterun-1"));
        let spread = [&mpi[..3], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "1"), ("MOE_PORT", "7000")]].concat();
        assert!(error(&spread).contains("MASTER_ADDR is not set"));
    }

    #[test]
    fn slurm_has_an_address_and_a_run() {
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "0"),
            ("MOE_PORT", "7000"),
        ];
        let got = launch(&slurm).unwrap().unwrap();
        assert_eq!((got.rank, got.size, got.local_rank, got.port), (5, 8, 1, 7000));
        assert_eq!((got.address.as_str(), got.run.as_str()), ("10.0.0.1", "77.0"));
    }

    #[test]
    fn without_a_launcher_there_is_nothing() {
        assert_eq!(launch(&[("MASTER_ADDR", "x"), ("RANK", "")]), Ok(None));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(error(&[("RANK", "0")]).contains("WORLD_SIZE is not set"));
        assert!(
            error(&[("RANK", "4"), ("WORLD_SIZE", "4")]).contains("RANK is 4, but must be a number up to 3")
        );
        assert!(error(&[("RANK", "x"), ("WORLD_SIZE", "4")]).contains("RANK is x"));
        assert!(error(&[&[("MOE_KEY", "12")][..], &TORCHRUN].concat()).contains("key is 2 characters"));
        assert!(error(&[&[("MOE_KEY_FILE", "/none")][..], &TORCHRUN].concat()).contains("cannot be read"));
    }

    #[test]
    fn variables_lead_back_to_the_launch() {
        for mut launch in Launch::local(3).unwrap() {
            (launch.encrypt, launch.tcp) = (launch.rank == 1, launch.rank == 0);
            let variables = launch.variables();
            let of =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
            assert_eq!(Launch::from_variables(of), Ok(Some(launch.clone())));
        }
    }
}
