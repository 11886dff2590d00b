//! Work and limit measured in turns, by the clock and by the processor time that it took.

use moe_cpu::Reader;
use std::time::{Duration, Instant};

/// One turn.
struct Turn {
    /// seconds by the clock
    wall: f64,
    /// seconds of all threads
    cpu: f64,
    /// the limit's rate
    rate: f64,
}

/// The turns, and the threads that worked.
pub(crate) struct Turns {
    turns: Vec<Turn>,
    threads: f64,
}

/// Seconds that this process has computed so far; where no one counts them, 0.
fn cpu_seconds() -> f64 {
    #[cfg(target_os = "linux")]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one value, through a pointer to it.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(target_os = "linux"))]
    0.0
}

/// Work and limit in turns until `budget` is spent, five times at least; the first is not counted.
pub(crate) fn turns<E>(
    budget: Duration,
    threads: usize,
    mut limit: impl FnMut() -> f64,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<Turns, E> {
    let (begin, mut turns) = (Instant::now(), Vec::with_capacity(4096));
    work()?;
    while turns.len() < 5 || (begin.elapsed() < budget && turns.len() < 4096) {
        let rate = limit();
        let (start, before) = (Instant::now(), cpu_seconds());
        work()?;
        turns.push(Turn { wall: start.elapsed().as_secs_f64(), cpu: cpu_seconds() - before, rate });
    }
    Ok(Turns { turns, threads: threads as f64 })
}

/// The middle one of some values.
pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Turns {
    /// Number of turns.
    pub(crate) fn count(&self) -> usize {
        self.turns.len()
    }

    /// The middle time by the clock.
    pub(crate) fn median(&self) -> f64 {
        middle(self.turns.iter().map(|turn| turn.wall).collect())
    }

    /// The shortest time by the clock.
    pub(crate) fn fastest(&self) -> f64 {
        self.turns.iter().map(|turn| turn.wall).fold(f64::INFINITY, f64::min)
    }

    /// The middle of the processor times of a thread: what the clock would show if nothing else ran and no thread waited.
    pub(crate) fn alone(&self) -> f64 {
        middle(self.turns.iter().map(|turn| turn.cpu / self.threads).collect())
    }

    /// The highest rate of the limit.
    pub(crate) fn limit(&self) -> f64 {
        self.turns.iter().map(|turn| turn.rate).fold(0.0, f64::max)
    }

    /// The middle of the turns' shares, by processor time.
    pub(crate) fn share_alone(&self, work: f64) -> f64 {
        middle(self.turns.iter().map(|turn| work / (turn.cpu / self.threads) / turn.rate).collect())
    }

    /// The middle of the turns' shares: `work` a second of what the limit allows.
    pub(crate) fn share(&self, work: f64) -> f64 {
        middle(self.turns.iter().map(|turn| work / turn.wall / turn.rate).collect())
    }
}

/// The highest of some rates of reading.
pub(crate) fn fastest_rate(reader: &Reader, rounds: usize) -> f64 {
    (0..rounds).map(|_| reader.rate()).fold(0.0, f64::max)
}
