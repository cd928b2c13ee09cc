//! How often a node beats, and how long silence is borne. The kernel's values are the default. All nodes of a cluster
//! must have the same: the handshake of `net` refuses a peer that has not.

use std::time::Duration;

/// The time-outs of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From one heartbeat to the next.
    pub beat: Duration,
    /// Beats without a change after which a node is dead.
    pub dead_threshold: u32,
    /// Beats with a change after which a node lives.
    pub live_threshold: u32,
    /// Silence on a connection after which it counts as lost.
    pub idle: Duration,
    /// Silence on a connection after which the peer is asked for a sign.
    pub keepalive: Duration,
    /// From one attempt to connect to the next.
    pub reconnect: Duration,
    /// How long a node that joins may wait for its connections to all that live.
    pub join: Duration,
}

/// Time-outs that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value}, must be {must}")]
pub struct TimingError {
    pub what: &'static str,
    pub value: String,
    pub must: &'static str,
}

impl Default for Timing {
    fn default() -> Self {
        Timing::kernel()
    }
}

impl Timing {
    /// The kernel's: a death is noticed within 64 s (31 beats of 2 s, and one that was just missed).
    pub const fn kernel() -> Self {
        Timing {
            beat: Duration::from_secs(2),
            dead_threshold: 31,
            live_threshold: 2,
            idle: Duration::from_secs(30),
            keepalive: Duration::from_secs(2),
            reconnect: Duration::from_secs(2),
            join: Duration::from_secs(60),
        }
    }

    /// For clusters of Ocelot nodes only: a death is noticed within 3 s (12 beats of 200 ms, one that was just missed,
    /// and 400 ms for slow reads); a node that cannot reach its disk stops after 2.2 s; a partition is decided within 4.3 s.
    /// Wants a device and a network that answer within 100 ms, always.
    pub const fn fast() -> Self {
        Timing {
            beat: Duration::from_millis(200),
            dead_threshold: 12,
            live_threshold: 2,
            idle: Duration::from_millis(1500),
            keepalive: Duration::from_millis(300),
            reconnect: Duration::from_millis(200),
            join: Duration::from_secs(10),
        }
    }

    /// How long after the start of its last good heartbeat a node must stop: one beat before the others may call it
    /// dead. The handshake compares it.
    pub fn fence_after(&self) -> Duration {
        self.beat * self.dead_threshold.saturating_sub(1)
    }

    /// Silence on disk that others take for death. Written into the heartbeat block.
    pub fn dead_after(&self) -> Duration {
        self.beat * self.dead_threshold
    }

    /// From a lost connection to the question whether the peer beats nevertheless: a dead one has been found out.
    pub fn quorum_delay(&self) -> Duration {
        self.beat * self.dead_threshold.saturating_add(2)
    }

    /// Half of [`Timing::fence_after`]: when a write that hangs is talked about with the others.
    pub fn negotiate_after(&self) -> Duration {
        self.fence_after() / 2
    }

    /// How often the lowest node looks whether all have spoken: every second, and often enough in a shorter time.
    pub fn negotiate_again(&self) -> Duration {
        (self.fence_after() / 16).min(Duration::from_secs(1))
    }

    /// Whether these can work.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), TimingError> {
        let thresholds = [
            ("dead threshold", self.dead_threshold, 3, "3 or more"),
            ("live threshold", self.live_threshold, 1, "1 or more"),
        ];
        for (what, value, least, must) in thresholds {
            if value < least || value > 100_000 {
                let value = value.to_string();
                return Err(TimingError { what, value, must });
            }
        }
        let day = Duration::from_secs(86_400);
        let durations = [
            (
                "beat",
                self.beat,
                Duration::from_millis(10),
                "10 ms to a day",
            ),
            (
                "keepalive",
                self.keepalive,
                Duration::from_millis(10),
                "10 ms to a day",
            ),
            (
                "idle time-out",
                self.idle,
                self.keepalive * 2,
                "twice the keepalive or more",
            ),
            (
                "reconnect delay",
                self.reconnect,
                Duration::from_millis(1),
                "1 ms to a day",
            ),
            ("join time-out", self.join, self.beat, "a beat or more"),
        ];
        for (what, value, least, must) in durations {
            if value < least || value > day {
                let value = format!("{value:?}");
                return Err(TimingError { what, value, must });
            }
        }
        if self.dead_after() > day {
            let value = format!("{:?}", self.dead_after());
            let (what, must) = ("dead threshold in time", "a day at most");
            return Err(TimingError { what, value, must });
        }
        Ok(())
    }
}

/// As the wire and the disk carry it. A checked timing fits.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_derived_values() {
        let kernel = Timing::kernel();
        kernel.check().unwrap();
        assert_eq!(millis(kernel.fence_after()), 60_000);
        assert_eq!(millis(kernel.dead_after()), 62_000);
        assert_eq!(millis(kernel.quorum_delay()), 66_000);
        assert_eq!(millis(kernel.negotiate_after()), 30_000);
    }

    #[test]
    fn the_fast_profile_notices_within_3_seconds() {
        let fast = Timing::fast();
        fast.check().unwrap();
        assert!(fast.dead_after() + fast.beat * 3 <= Duration::from_secs(3));
        assert!(fast.fence_after() < fast.dead_after());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let kernel = Timing::kernel();
        let bad = [
            Timing {
                dead_threshold: 2,
                ..kernel
            },
            Timing {
                live_threshold: 0,
                ..kernel
            },
            Timing {
                beat: Duration::ZERO,
                ..kernel
            },
            Timing {
                idle: Duration::from_secs(3),
                ..kernel
            },
            Timing {
                join: Duration::from_secs(1),
                ..kernel
            },
            Timing {
                dead_threshold: 100_000,
                ..kernel
            },
        ];
        for timing in bad {
            timing.check().unwrap_err();
        }
    }
}
