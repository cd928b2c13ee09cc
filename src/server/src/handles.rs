//! Open handles and the sessions they belong to.
//!
//! Rule: a handle ends with its Close, its session, its volume, or after a time of disuse if it has
//! no session; and whatever ends it, the file is closed on the volume ([`RemoteFile`]'s drop).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::errors::errno;

use crate::door::{Ino, OpenFlags};
use crate::failure::{Failure, Result};
use crate::limits;
use crate::volume::RemoteFile;

/// One open handle.
pub struct OpenHandle {
    pub id: u64,
    pub volume_name: Arc<str>,
    pub ino: Ino,
    pub flags: OpenFlags,
    pub file: RemoteFile,
    /// 0 if none.
    session: u64,
    /// Milliseconds after the table's start.
    last_used_ms: AtomicU64,
}

/// All open handles and sessions of the node.
pub struct Handles {
    tables: Mutex<Tables>,
    started: Instant,
    most: usize,
}

#[derive(Default)]
struct Tables {
    handles: HashMap<u64, Arc<OpenHandle>>,
    sessions: HashMap<u64, HashSet<u64>>,
}

impl Handles {
    pub fn new(most: usize) -> Self {
        Handles {
            tables: Mutex::default(),
            started: Instant::now(),
            most,
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing panics between two changes that belong together.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Says early that there is no room, so that nothing is created for nothing.
    pub fn check_room(&self) -> Result<()> {
        self.room(&self.tables())
    }

    fn room(&self, tables: &Tables) -> Result<()> {
        if tables.handles.len() < self.most {
            Ok(())
        } else {
            Err(Failure::new(
                errno::EMFILE,
                format!("{} handles are open, the most allowed", self.most),
            ))
        }
    }

    pub fn check_session(&self, session: u64) -> Result<()> {
        if session == 0 || self.tables().sessions.contains_key(&session) {
            Ok(())
        } else {
            Err(no_session(session))
        }
    }

    /// Gives an open file a handle.
    pub fn insert(
        &self,
        file: RemoteFile,
        volume_name: Arc<str>,
        ino: Ino,
        flags: OpenFlags,
        session: u64,
    ) -> Result<u64> {
        let last_used_ms = AtomicU64::new(self.now_ms());
        let mut tables = self.tables();
        self.room(&tables)?;
        let id = fresh_id(|id| tables.handles.contains_key(&id));
        if session != 0 {
            tables
                .sessions
                .get_mut(&session)
                .ok_or_else(|| no_session(session))?
                .insert(id);
        }
        let handle = OpenHandle {
            id,
            volume_name,
            ino,
            flags,
            file,
            session,
            last_used_ms,
        };
        tables.handles.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The handle, and its use is noted.
    pub fn get(&self, id: u64) -> Result<Arc<OpenHandle>> {
        let handle = self
            .tables()
            .handles
            .get(&id)
            .cloned()
            .ok_or_else(|| Failure::bad_handle(id))?;
        handle.last_used_ms.store(self.now_ms(), Ordering::Relaxed);
        Ok(handle)
    }

    pub fn remove(&self, id: u64) -> Result<Arc<OpenHandle>> {
        let mut tables = self.tables();
        let handle = tables
            .handles
            .remove(&id)
            .ok_or_else(|| Failure::bad_handle(id))?;
        if let Some(session) = tables.sessions.get_mut(&handle.session) {
            session.remove(&id);
        }
        Ok(handle)
    }

    /// Ends all handles of a volume.
    pub fn remove_volume(&self, volume: &str) -> Vec<Arc<OpenHandle>> {
        self.remove_where(|handle| &*handle.volume_name == volume)
    }

    /// Ends the handles outside of any session that were not used for `idle` and are not in use now.
    pub fn remove_idle(&self, idle: Duration) -> Vec<Arc<OpenHandle>> {
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.now_ms();
        self.remove_where(|handle| {
            handle.session == 0
                && Arc::strong_count(handle) == 1
                && now_ms.saturating_sub(handle.last_used_ms.load(Ordering::Relaxed)) >= idle_ms
        })
    }

    fn remove_where(&self, condition: impl Fn(&Arc<OpenHandle>) -> bool) -> Vec<Arc<OpenHandle>> {
        let mut tables = self.tables();
        let Tables { handles, sessions } = &mut *tables;
        let removed: Vec<_> = handles
            .extract_if(|_, handle| condition(handle))
            .map(|(_, handle)| handle)
            .collect();
        for handle in &removed {
            if let Some(session) = sessions.get_mut(&handle.session) {
                session.remove(&handle.id);
            }
        }
        removed
    }

    pub fn count(&self) -> usize {
        self.tables().handles.len()
    }

    pub fn count_of(&self, volume: &str) -> usize {
        self.tables()
            .handles
            .values()
            .filter(|handle| &*handle.volume_name == volume)
            .count()
    }

    pub fn most(&self) -> usize {
        self.most
    }

    pub fn sessions(&self) -> usize {
        self.tables().sessions.len()
    }

    /// Starts a session; it ends when the guard is dropped.
    pub fn start_session(self: &Arc<Self>) -> Result<Session> {
        let mut tables = self.tables();
        if tables.sessions.len() >= limits::SESSIONS {
            return Err(Failure::new(
                errno::EMFILE,
                format!("{} sessions are open, the most allowed", limits::SESSIONS),
            ));
        }
        let id = fresh_id(|id| tables.sessions.contains_key(&id));
        tables.sessions.insert(id, HashSet::new());
        Ok(Session {
            id,
            handles: self.clone(),
        })
    }
}

/// A session; its handles end when it is dropped.
pub struct Session {
    pub id: u64,
    handles: Arc<Handles>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let ended: Vec<_> = {
            let mut tables = self.handles.tables();
            let ids = tables.sessions.remove(&self.id).unwrap_or_default();
            ids.iter()
                .filter_map(|id| tables.handles.remove(id))
                .collect()
        };
        tracing::debug!(session = self.id, handles = ended.len(), "session ended");
    }
}

fn no_session(session: u64) -> Failure {
    Failure::field("session", format!("there is no session {session:#018x}"))
}

/// A random number that is not 0 and not taken: not to be guessed, and not to be mistaken for one of
/// an earlier run.
fn fresh_id(taken: impl Fn(u64) -> bool) -> u64 {
    loop {
        let id = rand::random::<u64>();
        if id != 0 && !taken(id) {
            return id;
        }
    }
}
