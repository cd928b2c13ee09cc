//! Bytes to messages and back.

use super::message::*;
use super::{MAX_RECORDS, MAX_REGIONS, WireError, raw};
use crate::{DomainName, LockName, Lvb, Mode, NodeNr, NodeSet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A payload under examination.
struct Payload<'a> {
    msg: MsgType,
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    fn length(&self, expected: usize) -> WireError {
        WireError::Length {
            msg: self.msg,
            length: self.bytes.len(),
            expected,
        }
    }

    fn value(&self, field: &'static str, value: impl Into<i64>) -> WireError {
        WireError::Value {
            msg: self.msg,
            field,
            value: value.into(),
        }
    }

    /// The payload as `T`, and nothing behind it.
    fn exact<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<&'a T, WireError> {
        T::ref_from_bytes(self.bytes).map_err(|_| self.length(size_of::<T>()))
    }

    /// The payload as `T`, and what is behind it.
    fn prefix<T>(&self) -> Result<(&'a T, &'a [u8]), WireError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        T::ref_from_prefix(self.bytes).map_err(|_| self.length(size_of::<T>()))
    }

    /// The value block behind a structure, which has to be there exactly if a flag says so.
    fn lvb(&self, rest: &[u8], there: bool) -> Result<Option<Lvb>, WireError> {
        let expected = if there { Lvb::SIZE } else { 0 };
        if rest.len() != expected {
            return Err(self.length(self.bytes.len() - rest.len() + expected));
        }
        Ok(rest.try_into().ok().map(Lvb))
    }

    fn node(&self, field: &'static str, nr: u8) -> Result<NodeNr, WireError> {
        NodeNr::new(nr).ok_or_else(|| self.value(field, nr))
    }

    fn mode(&self, field: &'static str, mode: i8) -> Result<Mode, WireError> {
        Mode::from_wire(mode).ok_or_else(|| self.value(field, mode))
    }

    fn no_mode(&self, field: &'static str, mode: i8) -> Result<Option<Mode>, WireError> {
        if mode == Mode::NONE {
            Ok(None)
        } else {
            self.mode(field, mode).map(Some)
        }
    }

    fn lock_name(&self, field: &[u8], length: u8) -> Result<LockName, WireError> {
        // A length beyond the field is one beyond the name's limit, which the name itself refuses.
        let bytes = field.get(..usize::from(length)).ok_or(crate::BadName {
            what: "lock",
            length: length.into(),
            limit: LockName::MAX,
        });
        bytes
            .and_then(LockName::new)
            .map_err(|source| WireError::Name {
                msg: self.msg,
                source,
            })
    }

    fn domain(&self, field: &[u8; 64], length: u8) -> Result<DomainName, WireError> {
        let bytes = field.get(..usize::from(length)).ok_or(crate::BadName {
            what: "domain",
            length: length.into(),
            limit: DomainName::MAX,
        });
        bytes
            .and_then(DomainName::new)
            .map_err(|source| WireError::Name {
                msg: self.msg,
                source,
            })
    }

    fn record(&self, raw: &raw::MigLock) -> Result<MigLock, WireError> {
        let queue = match raw.list {
            0 => Queue::Granted,
            1 => Queue::Converting,
            2 => Queue::Blocked,
            list => return Err(self.value("queue", list)),
        };
        let record = MigLock {
            cookie: raw.cookie.get(),
            queue,
            flags: RecordFlags::from_bits_retain(raw.flags),
            mode: self.no_mode("mode", raw.mode)?,
            convert: self.no_mode("mode wanted", raw.convert)?,
            highest_blocked: self.no_mode("mode blocked", raw.highest_blocked)?,
            node: self.node("lock's node", raw.node)?,
        };
        // A real lock has a mode, and waits for another exactly on the queue of those who do.
        if !record.is_reference() {
            if record.mode.is_none() {
                return Err(self.value("mode", raw.mode));
            }
            if record.convert.is_some() != (queue == Queue::Converting) {
                return Err(self.value("mode wanted", raw.convert));
            }
        }
        Ok(record)
    }

    fn mig_lockres(&self) -> Result<MigLockres, WireError> {
        let (raw, rest) = self.prefix::<raw::MigLockres>()?;
        let num_locks = usize::from(raw.num_locks);
        if num_locks > MAX_RECORDS {
            return Err(self.value("number of locks", raw.num_locks));
        }
        let expected = size_of::<raw::MigLockres>() + num_locks * size_of::<raw::MigLock>();
        let records = <[raw::MigLock]>::ref_from_bytes(rest).map_err(|_| self.length(expected))?;
        if records.len() != num_locks {
            return Err(self.length(expected));
        }
        let locks = records
            .iter()
            .map(|raw| self.record(raw))
            .collect::<Result<Vec<_>, _>>()?;
        // Records that only say "a reference" are not in the total.
        if locks.iter().filter(|lock| !lock.is_reference()).count() > raw.total_locks.get() as usize
        {
            return Err(self.value("total of locks", raw.total_locks.get()));
        }
        Ok(MigLockres {
            master: NodeNr::new(raw.master),
            flags: MigFlags::from_bits_retain(raw.flags),
            total_locks: raw.total_locks.get(),
            mig_cookie: raw.mig_cookie.get(),
            name: self.lock_name(&raw.name, raw.name_len)?,
            lvb: raw.lvb,
            locks,
        })
    }

    fn regions(&self) -> Result<Message, WireError> {
        let raw = self.exact::<raw::QueryRegion>()?;
        let regions = raw
            .regions
            .get(..usize::from(raw.num_regions))
            .ok_or_else(|| self.value("number of regions", raw.num_regions))?;
        Ok(Message::QueryRegion {
            node: self.node("node", raw.node)?,
            domain: self.domain(&raw.domain, raw.name_len)?,
            regions: regions.to_vec(),
        })
    }

    fn node_info(&self) -> Result<Message, WireError> {
        let raw = self.exact::<raw::QueryNodeInfo>()?;
        let nodes = raw.nodes.iter().take(raw.num_nodes.into()).map(|info| {
            Ok(NodeAddress {
                node: self.node("listed node", info.node)?,
                address: info.address.get().to_be_bytes(),
                port: info.port.get(),
            })
        });
        Ok(Message::QueryNodeInfo {
            node: self.node("node", raw.node)?,
            domain: self.domain(&raw.domain, raw.name_len)?,
            nodes: nodes.collect::<Result<_, _>>()?,
        })
    }

    fn query_join(&self) -> Result<Message, WireError> {
        let raw = self.exact::<raw::QueryJoin>()?;
        Ok(Message::QueryJoin {
            node: self.node("node", raw.node)?,
            dlm: Version {
                major: raw.dlm_major,
                minor: raw.dlm_minor,
            },
            fs: Version {
                major: raw.fs_major,
                minor: raw.fs_minor,
            },
            domain: self.domain(&raw.domain, raw.name_len)?,
            live: NodeSet::from_bytes(&raw.node_map),
        })
    }

    fn request(&self) -> Result<(&'a raw::Request, NodeNr, Mode, LockName, &'a [u8]), WireError> {
        let (raw, rest) = self.prefix::<raw::Request>()?;
        let node = self.node("node", raw.node)?;
        let mode = self.mode("mode", raw.mode)?;
        let name = self.lock_name(&raw.name, raw.name_len)?;
        Ok((raw, node, mode, name, rest))
    }

    fn proxy_ast(&self) -> Result<Message, WireError> {
        let (raw, rest) = self.prefix::<raw::ProxyAst>()?;
        let kind = match raw.kind {
            0 => AstKind::Ast,
            1 => AstKind::Bast(self.mode("mode blocked", raw.blocked)?),
            kind => return Err(self.value("kind of notice", kind)),
        };
        let flags = LockFlags::from_bits_retain(raw.flags.get());
        Ok(Message::ProxyAst {
            node: self.node("node", raw.node)?,
            cookie: raw.cookie.get(),
            flags,
            kind,
            name: self.lock_name(&raw.name, raw.name_len)?,
            lvb: self.lvb(rest, flags.contains(LockFlags::GET_LVB))?,
        })
    }

    fn reco(&self) -> Result<(NodeNr, NodeNr, u8), WireError> {
        let raw = self.exact::<raw::Reco>()?;
        Ok((
            self.node("node", raw.node)?,
            self.node("dead node", raw.dead)?,
            raw.flags,
        ))
    }

    fn message(&self) -> Result<Message, WireError> {
        Ok(match self.msg {
            MsgType::MasterRequest | MsgType::AssertMaster => {
                let raw = self.exact::<raw::Master>()?;
                let node = self.node("node", raw.node)?;
                let name = self.lock_name(&raw.name, raw.name_len)?;
                let flags = raw.flags.get();
                if self.msg == MsgType::MasterRequest {
                    Message::MasterRequest {
                        node,
                        flags: LockFlags::from_bits_retain(flags),
                        name,
                    }
                } else {
                    Message::AssertMaster {
                        node,
                        flags: AssertFlags::from_bits_retain(flags),
                        name,
                    }
                }
            }
            MsgType::CreateLock => {
                let (raw, node, mode, name, rest) = self.request()?;
                self.lvb(rest, false)?;
                let flags = LockFlags::from_bits_retain(raw.flags.get());
                Message::CreateLock {
                    node,
                    cookie: raw.cookie.get(),
                    flags,
                    mode,
                    name,
                }
            }
            MsgType::ConvertLock => {
                let (raw, node, mode, name, rest) = self.request()?;
                let flags = LockFlags::from_bits_retain(raw.flags.get());
                let lvb = self.lvb(rest, flags.contains(LockFlags::PUT_LVB))?;
                Message::ConvertLock {
                    node,
                    cookie: raw.cookie.get(),
                    flags,
                    mode,
                    name,
                    lvb,
                }
            }
            MsgType::ProxyAst => self.proxy_ast()?,
            MsgType::UnlockLock => {
                let (raw, rest) = self.prefix::<raw::Unlock>()?;
                let flags = LockFlags::from_bits_retain(raw.flags.get());
                Message::UnlockLock {
                    node: self.node("node", raw.node)?,
                    cookie: raw.cookie.get(),
                    flags,
                    name: self.lock_name(&raw.name, raw.name_len)?,
                    lvb: self.lvb(rest, flags.contains(LockFlags::PUT_LVB))?,
                }
            }
            MsgType::DerefLockres | MsgType::DerefLockresDone => {
                let raw = self.exact::<raw::Deref>()?;
                let node = self.node("node", raw.node)?;
                let name = self.lock_name(&raw.name, raw.name_len)?;
                if self.msg == MsgType::DerefLockres {
                    Message::DerefLockres { node, name }
                } else {
                    Message::DerefLockresDone { node, name }
                }
            }
            MsgType::MigrateRequest => {
                let raw = self.exact::<raw::Migrate>()?;
                Message::MigrateRequest {
                    master: self.node("master", raw.master)?,
                    new_master: self.node("new master", raw.new_master)?,
                    name: self.lock_name(&raw.name, raw.name_len)?,
                }
            }
            MsgType::MigLockres => Message::MigLockres(self.mig_lockres()?),
            MsgType::QueryJoin => self.query_join()?,
            MsgType::AssertJoined | MsgType::CancelJoin => {
                let raw = self.exact::<raw::Join>()?;
                let node = self.node("node", raw.node)?;
                let domain = self.domain(&raw.domain, raw.name_len)?;
                if self.msg == MsgType::AssertJoined {
                    Message::AssertJoined { node, domain }
                } else {
                    Message::CancelJoin { node, domain }
                }
            }
            MsgType::ExitDomain => Message::ExitDomain {
                node: self.node("node", self.exact::<raw::Exit>()?.node)?,
            },
            MsgType::BeginExitDomain => Message::BeginExitDomain {
                node: self.node("node", self.exact::<raw::Exit>()?.node)?,
            },
            MsgType::MasterRequery => {
                let raw = self.exact::<raw::Requery>()?;
                Message::MasterRequery {
                    node: self.node("node", raw.node)?,
                    name: self.lock_name(&raw.name, raw.name_len)?,
                }
            }
            MsgType::LockRequest => {
                let (node, dead, _) = self.reco()?;
                Message::LockRequest { node, dead }
            }
            MsgType::RecoDataDone => {
                let raw = self.exact::<raw::RecoDone>()?;
                Message::RecoDataDone {
                    node: self.node("node", raw.node)?,
                    dead: self.node("dead node", raw.dead)?,
                }
            }
            MsgType::BeginReco => {
                let (node, dead, _) = self.reco()?;
                Message::BeginReco { node, dead }
            }
            MsgType::FinalizeReco => {
                let (node, dead, flags) = self.reco()?;
                Message::FinalizeReco {
                    node,
                    dead,
                    flags: FinalizeFlags::from_bits_retain(flags),
                }
            }
            MsgType::QueryRegion => self.regions()?,
            MsgType::QueryNodeInfo => self.node_info()?,
        })
    }
}

/// The message that a frame of type `msg_type` carries.
///
/// # Errors
/// The payload is none that a node in its senses sends; see [`WireError`]. Nothing of it is to be used.
pub fn decode(msg_type: u16, payload: &[u8]) -> Result<Message, WireError> {
    let msg = MsgType::from_wire(msg_type).ok_or(WireError::UnknownType(msg_type))?;
    Payload {
        msg,
        bytes: payload,
    }
    .message()
}

/// A structure and the value block that may follow it.
fn with_lvb<T: IntoBytes + Immutable>(raw: T, lvb: Option<&Lvb>) -> Vec<u8> {
    let mut bytes = raw.as_bytes().to_vec();
    bytes.extend(lvb.into_iter().flat_map(|lvb| lvb.0));
    bytes
}

fn request(
    node: NodeNr,
    cookie: u64,
    flags: LockFlags,
    mode: Mode,
    name: &LockName,
) -> raw::Request {
    raw::Request {
        cookie: cookie.into(),
        flags: flags.bits().into(),
        pad: 0,
        node: node.get(),
        mode: mode.to_wire(),
        name_len: name.length(),
        name: name.padded(),
    }
}

fn reco(node: NodeNr, dead: NodeNr, flags: u8) -> Vec<u8> {
    let raw = raw::Reco {
        node: node.get(),
        dead: dead.get(),
        flags,
        pad1: 0,
        pad2: 0.into(),
    };
    raw.as_bytes().to_vec()
}

fn master(node: NodeNr, flags: u32, name: &LockName) -> Vec<u8> {
    let raw = raw::Master {
        node: node.get(),
        name_len: name.length(),
        pad: 0.into(),
        flags: flags.into(),
        name: name.padded(),
    };
    raw.as_bytes().to_vec()
}

fn deref(node: NodeNr, name: &LockName) -> Vec<u8> {
    let raw = raw::Deref {
        pad1: 0.into(),
        pad2: 0.into(),
        node: node.get(),
        name_len: name.length(),
        name: name.padded(),
    };
    raw.as_bytes().to_vec()
}

fn join(node: NodeNr, domain: &DomainName) -> Vec<u8> {
    let raw = raw::Join {
        node: node.get(),
        pad: [0; 2],
        name_len: domain.length(),
        domain: domain.padded(),
    };
    raw.as_bytes().to_vec()
}

fn mig_lockres(this: &MigLockres) -> Vec<u8> {
    assert!(
        this.locks.len() <= MAX_RECORDS,
        "{} locks in one message",
        this.locks.len()
    );
    let raw = raw::MigLockres {
        master: NodeNr::byte(this.master),
        name_len: this.name.length(),
        num_locks: this.locks.len() as u8,
        flags: this.flags.bits(),
        total_locks: this.total_locks.into(),
        mig_cookie: this.mig_cookie.into(),
        name: this.name.padded(),
        lvb: this.lvb,
    };
    let mode = |mode: Option<Mode>| mode.map_or(Mode::NONE, Mode::to_wire);
    let mut bytes = raw.as_bytes().to_vec();
    for lock in &this.locks {
        let record = raw::MigLock {
            cookie: lock.cookie.into(),
            pad: 0.into(),
            list: lock.queue as u8,
            flags: lock.flags.bits(),
            mode: mode(lock.mode),
            convert: mode(lock.convert),
            highest_blocked: mode(lock.highest_blocked),
            node: lock.node.get(),
        };
        bytes.extend_from_slice(record.as_bytes());
    }
    bytes
}

fn regions(node: NodeNr, domain: &DomainName, regions: &[RegionName]) -> Vec<u8> {
    assert!(
        regions.len() <= MAX_REGIONS,
        "{} regions in one message",
        regions.len()
    );
    let mut raw = raw::QueryRegion {
        node: node.get(),
        num_regions: regions.len() as u8,
        name_len: domain.length(),
        pad: 0,
        domain: domain.padded(),
        regions: [[0; 32]; MAX_REGIONS],
    };
    raw.regions[..regions.len()].copy_from_slice(regions);
    raw.as_bytes().to_vec()
}

fn node_info(node: NodeNr, domain: &DomainName, nodes: &[NodeAddress]) -> Vec<u8> {
    let none = raw::NodeInfo {
        node: 0,
        pad: 0,
        port: 0.into(),
        address: 0.into(),
    };
    let mut raw = raw::QueryNodeInfo {
        node: node.get(),
        num_nodes: nodes
            .len()
            .try_into()
            .expect("no more nodes than numbers for them"),
        name_len: domain.length(),
        pad: 0,
        domain: domain.padded(),
        nodes: [none; 255],
    };
    for (info, node) in raw.nodes.iter_mut().zip(nodes) {
        info.node = node.node.get();
        info.port = node.port.into();
        info.address = u32::from_be_bytes(node.address).into();
    }
    raw.as_bytes().to_vec()
}

impl Message {
    /// The payload.
    ///
    /// # Panics
    /// If a list is longer than a message can hold, or a value block is not there where the flags say so: both are the
    /// caller's mistakes.
    pub fn encode(&self) -> Vec<u8> {
        let check = |flags: &LockFlags, lvb: &Option<Lvb>, flag| {
            assert_eq!(
                flags.contains(flag),
                lvb.is_some(),
                "a value block and its flag"
            );
        };
        match self {
            Self::MasterRequest { node, flags, name } => master(*node, flags.bits(), name),
            Self::AssertMaster { node, flags, name } => master(*node, flags.bits(), name),
            Self::CreateLock {
                node,
                cookie,
                flags,
                mode,
                name,
            } => with_lvb(request(*node, *cookie, *flags, *mode, name), None),
            Self::ConvertLock {
                node,
                cookie,
                flags,
                mode,
                name,
                lvb,
            } => {
                check(flags, lvb, LockFlags::PUT_LVB);
                with_lvb(request(*node, *cookie, *flags, *mode, name), lvb.as_ref())
            }
            Self::ProxyAst {
                node,
                cookie,
                flags,
                kind,
                name,
                lvb,
            } => {
                check(flags, lvb, LockFlags::GET_LVB);
                let (kind, blocked) = match kind {
                    AstKind::Ast => (0, 0),
                    AstKind::Bast(blocked) => (1, blocked.to_wire()),
                };
                let raw = raw::ProxyAst {
                    cookie: (*cookie).into(),
                    flags: flags.bits().into(),
                    node: node.get(),
                    kind,
                    blocked,
                    name_len: name.length(),
                    name: name.padded(),
                };
                with_lvb(raw, lvb.as_ref())
            }
            Self::UnlockLock {
                node,
                cookie,
                flags,
                name,
                lvb,
            } => {
                check(flags, lvb, LockFlags::PUT_LVB);
                let raw = raw::Unlock {
                    cookie: (*cookie).into(),
                    flags: flags.bits().into(),
                    pad: 0.into(),
                    node: node.get(),
                    name_len: name.length(),
                    name: name.padded(),
                };
                with_lvb(raw, lvb.as_ref())
            }
            Self::DerefLockres { node, name } | Self::DerefLockresDone { node, name } => {
                deref(*node, name)
            }
            Self::MigrateRequest {
                master,
                new_master,
                name,
            } => {
                let raw = raw::Migrate {
                    master: master.get(),
                    new_master: new_master.get(),
                    name_len: name.length(),
                    pad1: 0,
                    pad2: 0.into(),
                    name: name.padded(),
                };
                with_lvb(raw, None)
            }
            Self::MigLockres(this) => mig_lockres(this),
            Self::QueryJoin {
                node,
                dlm,
                fs,
                domain,
                live,
            } => {
                let raw = raw::QueryJoin {
                    node: node.get(),
                    pad: [0; 2],
                    name_len: domain.length(),
                    dlm_major: dlm.major,
                    dlm_minor: dlm.minor,
                    fs_major: fs.major,
                    fs_minor: fs.minor,
                    domain: domain.padded(),
                    node_map: live.to_bytes(),
                };
                with_lvb(raw, None)
            }
            Self::AssertJoined { node, domain } | Self::CancelJoin { node, domain } => {
                join(*node, domain)
            }
            Self::ExitDomain { node } | Self::BeginExitDomain { node } => with_lvb(
                raw::Exit {
                    node: node.get(),
                    pad: [0; 3],
                },
                None,
            ),
            Self::MasterRequery { node, name } => {
                let raw = raw::Requery {
                    pad1: 0,
                    pad2: 0,
                    node: node.get(),
                    name_len: name.length(),
                    pad3: 0.into(),
                    name: name.padded(),
                };
                with_lvb(raw, None)
            }
            Self::LockRequest { node, dead } | Self::BeginReco { node, dead } => {
                reco(*node, *dead, 0)
            }
            Self::RecoDataDone { node, dead } => {
                let raw = raw::RecoDone {
                    node: node.get(),
                    dead: dead.get(),
                    pad1: 0.into(),
                    pad2: 0.into(),
                    lvb: [0; 64],
                };
                with_lvb(raw, None)
            }
            Self::FinalizeReco { node, dead, flags } => reco(*node, *dead, flags.bits()),
            Self::QueryRegion {
                node,
                domain,
                regions: list,
            } => regions(*node, domain, list),
            Self::QueryNodeInfo {
                node,
                domain,
                nodes,
            } => node_info(*node, domain, nodes),
        }
    }
}
