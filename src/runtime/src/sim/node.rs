//! One of several nodes in a simulated world: a [`Host`] whose tasks can be paused (a stopped
//! process, a frozen virtual machine) and killed, while the clock and all others go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::world::World;
use crate::host::{Host, LocalFuture, WallTime};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    Dead,
}

struct Inner {
    world: World,
    name: String,
    life: Cell<Life>,
    next_task: Cell<u64>,
    /// How to reach each task of the node.
    tasks: RefCell<BTreeMap<u64, Waker>>,
}

/// A node; clones are the same one. A node that was killed stays dead: its restart is a new node.
#[derive(Clone)]
pub struct SimNode {
    inner: Rc<Inner>,
}

impl SimNode {
    pub fn new(world: &World, name: &str) -> Self {
        let inner = Inner {
            world: world.clone(),
            name: name.into(),
            life: Cell::new(Life::Running),
            next_task: Cell::new(0),
            tasks: RefCell::default(),
        };
        SimNode {
            inner: Rc::new(inner),
        }
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn host(&self) -> Rc<dyn Host> {
        Rc::new(self.clone())
    }

    /// No task of the node takes a step until [`SimNode::resume`]. Its timers run out meanwhile.
    pub fn pause(&self) {
        if self.inner.life.get() == Life::Running {
            self.inner.life.set(Life::Paused);
        }
    }

    pub fn resume(&self) {
        if self.inner.life.get() == Life::Paused {
            self.inner.life.set(Life::Running);
            self.wake_all();
        }
    }

    pub fn is_paused(&self) -> bool {
        self.inner.life.get() == Life::Paused
    }

    /// Ends all tasks of the node: none takes another step.
    pub fn kill(&self) {
        self.inner.life.set(Life::Dead);
        self.wake_all();
    }

    pub fn is_alive(&self) -> bool {
        self.inner.life.get() != Life::Dead
    }

    /// Like [`Host::spawn`], with a name for the message of a deadlock.
    pub fn spawn_named(&self, name: &str, future: impl Future<Output = ()> + 'static) {
        let id = self.inner.next_task.get();
        self.inner.next_task.set(id + 1);
        let task = NodeTask {
            node: self.inner.clone(),
            id,
            future: Some(Box::pin(future)),
        };
        let name = format!("{}:{name}", self.inner.name);
        self.inner.world.spawn_named(&name, task);
    }

    fn wake_all(&self) {
        let wakers: Vec<Waker> = self.inner.tasks.borrow().values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Host for SimNode {
    fn now(&self) -> Duration {
        self.inner.world.now()
    }

    fn wall(&self) -> WallTime {
        self.inner.world.wall()
    }

    fn random(&self) -> u64 {
        self.inner.world.random()
    }

    fn spawn(&self, future: LocalFuture<()>) {
        self.spawn_named("task", future);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<()> {
        self.inner.world.sleep(duration)
    }
}

impl fmt::Debug for SimNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.inner.name, self.inner.life.get())
    }
}

struct NodeTask {
    node: Rc<Inner>,
    id: u64,
    /// Absent once the node is dead.
    future: Option<LocalFuture<()>>,
}

impl Future for NodeTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let node = self.node.clone();
        if node.life.get() != Life::Dead {
            node.tasks.borrow_mut().insert(self.id, cx.waker().clone());
        }
        match (node.life.get(), self.future.as_mut()) {
            (Life::Running, Some(future)) => {
                let done = future.as_mut().poll(cx);
                // The task may have killed its own node.
                if done.is_pending() && node.life.get() == Life::Dead {
                    self.future = None;
                    return Poll::Ready(());
                }
                done
            }
            (Life::Paused, Some(_)) => Poll::Pending,
            (Life::Dead, _) | (_, None) => {
                self.future = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for NodeTask {
    fn drop(&mut self) {
        let waker = self.node.tasks.borrow_mut().remove(&self.id);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Simulation;

    fn ticker(node: &SimNode) -> Rc<Cell<u32>> {
        let (count, host) = (Rc::new(Cell::new(0)), node.host());
        let counter = count.clone();
        node.spawn_named("ticker", async move {
            loop {
                host.sleep(Duration::from_millis(10)).await;
                counter.set(counter.get() + 1);
            }
        });
        count
    }

    #[test]
    fn a_paused_node_stands_still_and_a_killed_one_is_gone() {
        let sim = Simulation::new(1);
        let (a, b) = (
            SimNode::new(&sim.world(), "a"),
            SimNode::new(&sim.world(), "b"),
        );
        let (ticks_a, ticks_b) = (ticker(&a), ticker(&b));
        let second = Duration::from_secs(1);
        sim.run_for(second).expect("runs");
        assert_eq!((ticks_a.get(), ticks_b.get()), (100, 100));
        a.pause();
        sim.run_for(second).expect("runs");
        assert_eq!((ticks_a.get(), ticks_b.get()), (100, 200));
        a.resume();
        sim.run_for(second).expect("runs");
        // The tick that fell due during the pause, and those since.
        assert!((200..=201).contains(&ticks_a.get()), "{}", ticks_a.get());
        b.kill();
        let left = sim.run_for(second).expect("runs");
        assert_eq!((ticks_b.get(), left), (300, 1));
        a.pause();
        a.kill();
        assert_eq!(sim.run_for(second).expect("runs"), 0, "no task is left");
    }
}
