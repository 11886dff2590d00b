//! Faults that tests ask for. Without the feature `faults` nothing of it is compiled.
//!
//! With it, the variable `MOE_FAULT` is `point operation number action`: at which of the points below, in which operation, counted from 1
//! which call of it, and whether this process then is killed (`kill`) or stopped (`stop`).

/// Where a rank can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "faults"), allow(dead_code))]
pub(crate) enum Point {
    /// before it calls another rank
    Connect,
    /// after its first message of a handshake
    Handshake,
    /// after a frame's header, which is all of a frame without payload
    Header,
    /// after half of a frame's payload
    Half,
    /// after the operation's last frame, before it returns
    Return,
}

#[cfg(not(feature = "faults"))]
mod none {
    use super::Point;
    use crate::frame::Operation;

    /// An operation begins.
    #[inline]
    pub(crate) fn begin(_: Operation) {}

    /// The process has come to a point.
    #[inline]
    pub(crate) fn at(_: Point) {}

    /// What of a frame's parts goes out next, if a fault comes inside the frame; `sent` bytes have gone.
    #[inline]
    pub(crate) fn cut(sent: usize, parts: [&[u8]; 3]) -> Option<&[u8]> {
        let _: (usize, [&[u8]; 3]) = (sent, parts);
        None
    }
}
#[cfg(not(feature = "faults"))]
pub(crate) use none::{at, begin, cut};

#[cfg(feature = "faults")]
mod asked {
    use super::Point;
    use crate::frame::{HEADER, Operation};
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    struct Asked {
        point: String,
        operation: String,
        number: u64,
        signal: Signal,
    }

    fn asked() -> Option<&'static Asked> {
        static ASKED: OnceLock<Option<Asked>> = OnceLock::new();
        let read = || {
            let value = std::env::var("MOE_FAULT").ok()?;
            let [point, operation, number, action] = value.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let signal = if action == "stop" { Signal::STOP } else { Signal::KILL };
            Some(Asked {
                point: point.into(),
                operation: operation.into(),
                number: number.parse().ok()?,
                signal,
            })
        };
        ASKED.get_or_init(read).as_ref()
    }

    /// Whether the operation under way is the one.
    static ARMED: Mutex<bool> = Mutex::new(false);
    static CALLS: AtomicU64 = AtomicU64::new(0);

    pub(crate) fn begin(operation: Operation) {
        let Some(asked) = asked() else { return };
        let here =
            asked.operation == operation.name() && CALLS.fetch_add(1, Ordering::Relaxed) + 1 == asked.number;
        *ARMED.lock().unwrap_or_else(PoisonError::into_inner) = here;
    }

    fn comes(point: Point) -> Option<&'static Asked> {
        let name = format!("{point:?}").to_lowercase();
        let armed = *ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        asked().filter(|asked| armed && asked.point == name)
    }

    pub(crate) fn at(point: Point) {
        if let Some(asked) = comes(point) {
            strike(asked);
        }
    }

    fn strike(asked: &Asked) {
        // A stopped process goes on behind this line when it is continued, without a second fault.
        *ARMED.lock().unwrap_or_else(PoisonError::into_inner) = false;
        let _: Result<(), _> = kill_process(getpid(), asked.signal);
    }

    pub(crate) fn cut(sent: usize, parts: [&[u8]; 3]) -> Option<&[u8]> {
        let asked = comes(Point::Header).or_else(|| comes(Point::Half))?;
        let [header, first, second] = parts;
        let payload = if first.is_empty() { second } else { first };
        let half = if asked.point == "half" { payload.len() / 2 } else { 0 };
        if sent < HEADER {
            return Some(&header[sent..]);
        }
        if sent < HEADER + half {
            return Some(&payload[sent - HEADER..half]);
        }
        strike(asked);
        None
    }
}
#[cfg(feature = "faults")]
pub(crate) use asked::{at, begin, cut};
