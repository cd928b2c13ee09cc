//! A node that joins again by itself: after a fence, once its owner has let go of everything, and after a join that
//! failed, a little later.

use std::rc::Rc;
use std::time::Duration;

use runtime::{Host, LocalFuture, Network};

use super::{JoinError, Member, MemberConfig, Observer};
use crate::lease::Fence;

/// Whoever uses the disks while the node is a member.
pub trait Owner {
    /// Who hears of everything in the next life, from before its first beat.
    fn observers(&self) -> Vec<Rc<dyn Observer>> {
        Vec::new()
    }

    /// The node is a member: mount, join the lock managers' domains, serve. Ends when all of it has ended and every request
    /// to a shared disk has come back, at the latest some time after the life is over ([`Member::ended`]).
    fn live(&self, member: Member) -> LocalFuture<After>;

    /// A join failed; whether to try again.
    fn failed(&self, _error: &JoinError) -> After {
        After::JoinAgain
    }
}

/// What to do when a life is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    JoinAgain,
    Stop,
}

/// Between attempts to join, in beats: long enough that the others notice that this node was gone.
const PAUSE_BEATS: u32 = 4;
/// The longest pause, as a factor: attempts that keep failing come less often.
const MAX_FACTOR: u32 = 16;

/// Lives one life after the other until the owner says stop. Returns how the last one ended.
pub async fn supervise(
    mut config: MemberConfig,
    host: Rc<dyn Host>,
    network: Rc<dyn Network>,
    owner: Rc<dyn Owner>,
) -> Result<Fence, JoinError> {
    let pause = config.timing.beat * PAUSE_BEATS;
    let mut factor = 1;
    loop {
        let observers = owner.observers();
        let joined = Member::join(config.clone(), host.clone(), network.clone(), observers).await;
        match joined {
            Ok(member) => {
                factor = 1;
                let after = owner.live(member.clone()).await;
                member.resign().await;
                config.old_life_is_over = true;
                let fence = member.lease().fence().unwrap_or(Fence::Left);
                if after == After::Stop {
                    return Ok(fence);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot join");
                if owner.failed(&error) == After::Stop {
                    return Err(error);
                }
                factor = (factor * 2).min(MAX_FACTOR);
            }
        }
        // Nodes that were fenced together must not knock in step.
        let spread = Duration::from_nanos(host.random() % pause.as_nanos().max(1) as u64);
        host.sleep(pause * factor + spread).await;
    }
}
