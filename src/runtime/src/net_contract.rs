//! What every [`Network`] must do, as a suite that any of them can be put through: the simulated one
//! here, a real stack where it is made. It uses the traits only and returns what is violated.
//!
//! What the cluster assumes beyond it is nothing: connections may break at any moment.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::{Either, join, join_all, select};
use rand::RngCore;

use crate::contract::Violation;
use crate::host::Host;
use crate::net::{Listener, NetError, NetErrorKind, Network, Stream};
use crate::sim::SimRng;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long something is watched that must not happen.
const QUIET: Duration = Duration::from_millis(50);
/// Bytes of the longest transfer.
const LONG: usize = 1 << 20;
/// No stack may take this much that nobody receives.
const UNBOUNDED: usize = 64 << 20;

type Verdict = Result<(), String>;
type Connection = Rc<dyn Stream>;

/// One side: a way into the network and an address of its own there.
pub struct Side {
    pub network: Rc<dyn Network>,
    /// Where this side may listen; with a port of zero the stack must choose one.
    pub address: SocketAddr,
}

struct Suite<'a> {
    server: &'a Side,
    client: &'a Side,
    host: &'a dyn Host,
}

/// Puts the network through all rules, with connections from `client` to `server`.
///
/// # Errors
/// The first rule that is violated.
pub async fn run(
    server: &Side,
    client: &Side,
    host: &dyn Host,
    seed: u64,
) -> Result<(), Violation> {
    let suite = Suite {
        server,
        client,
        host,
    };
    let rng = &mut SimRng::new(seed);
    let name = |rule| move |what| Violation { rule, what, seed };
    let rule = name("refuses_where_nobody_listens");
    suite.refuses_where_nobody_listens().await.map_err(rule)?;
    let rule = name("tells_addresses");
    suite.tells_addresses().await.map_err(rule)?;
    let rule = name("one_listener_per_address");
    suite.one_listener_per_address().await.map_err(rule)?;
    let rule = name("carries_bytes_both_ways");
    suite.carries_bytes_both_ways(rng).await.map_err(rule)?;
    let rule = name("a_receive_waits_and_may_be_dropped");
    suite
        .a_receive_waits_and_may_be_dropped()
        .await
        .map_err(rule)?;
    let rule = name("ends_in_order");
    suite.ends_in_order(rng).await.map_err(rule)?;
    let rule = name("closed_is_closed");
    suite.closed_is_closed().await.map_err(rule)?;
    let rule = name("takes_a_bounded_number_of_bytes");
    suite
        .takes_a_bounded_number_of_bytes()
        .await
        .map_err(rule)?;
    let rule = name("tells_when_the_peer_is_gone");
    suite.tells_when_the_peer_is_gone().await.map_err(rule)?;
    let rule = name("many_at_once");
    suite.many_at_once(rng).await.map_err(rule)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}

fn noise(len: usize, rng: &mut SimRng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn good<T>(what: &str, result: Result<T, NetError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn bad<T>(what: &str, kinds: &[NetErrorKind], result: Result<T, NetError>) -> Verdict {
    match result {
        Err(error) if kinds.contains(&error.kind) => Ok(()),
        Err(error) => Err(format!("{what} should be {kinds:?}, is: {error}")),
        Ok(_) => Err(format!("{what} should be {kinds:?}, succeeded")),
    }
}

/// All bytes until the end.
async fn receive_all(stream: &Connection) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    loop {
        let bytes = good("receive", stream.receive(7000).await)?;
        if bytes.is_empty() {
            return Ok(all);
        }
        ensure(bytes.len() <= 7000, || {
            format!("a receive of at most 7000 bytes returned {}", bytes.len())
        })?;
        all.extend(bytes);
    }
}

async fn receive_exactly(stream: &Connection, count: usize) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while all.len() < count {
        let bytes = good("receive", stream.receive(count - all.len()).await)?;
        let early = || format!("the end after {} of {count} bytes", all.len());
        ensure(!bytes.is_empty(), early)?;
        all.extend(bytes);
    }
    Ok(all)
}

/// Sends in pieces of random length.
async fn send_in_pieces(stream: &Connection, bytes: &[u8], rng: &mut SimRng) -> Verdict {
    let mut rest = bytes;
    while !rest.is_empty() {
        let bound = rest.len().min(9000) as u64;
        let (piece, after) = rest.split_at(1 + rng.below(bound) as usize);
        good("send", stream.send(piece.to_vec()).await)?;
        rest = after;
    }
    Ok(())
}

impl Suite<'_> {
    async fn within<T>(
        &self,
        what: &str,
        future: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let future = std::pin::pin!(future);
        match select(future, self.host.sleep(PATIENCE)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(format!("{what}: nothing within {PATIENCE:?}")),
        }
    }

    /// Whether the future is still pending after a while.
    async fn waits<T>(&self, future: &mut (impl Future<Output = T> + Unpin)) -> bool {
        matches!(
            select(future, self.host.sleep(QUIET)).await,
            Either::Right(_)
        )
    }

    async fn listen(&self) -> Result<Rc<dyn Listener>, String> {
        good(
            "listen",
            self.server.network.listen(self.server.address).await,
        )
    }

    fn connect(&self, to: SocketAddr) -> crate::LocalFuture<Result<Connection, NetError>> {
        self.client.network.connect(self.from(), to)
    }

    fn from(&self) -> IpAddr {
        self.client.address.ip()
    }

    /// A connection: the client's end and the server's.
    async fn pair(&self, listener: &Rc<dyn Listener>) -> Result<(Connection, Connection), String> {
        let both = join(self.connect(listener.local()), listener.accept());
        let both = async {
            let (client, server) = both.await;
            Ok((good("connect", client)?, good("accept", server)?))
        };
        self.within("connect and accept", both).await
    }

    async fn refuses_where_nobody_listens(&self) -> Verdict {
        let listener = self.listen().await?;
        let place = listener.local();
        drop(listener);
        let connect = async { Ok(self.connect(place).await) };
        let result = self.within("connect to nobody", connect).await?;
        let kinds = [NetErrorKind::Refused];
        bad("connect where a listener was dropped", &kinds, result)
    }

    async fn tells_addresses(&self) -> Verdict {
        let listener = self.listen().await?;
        let local = listener.local();
        ensure(local.ip() == self.server.address.ip(), || {
            format!("listens at {local}, not {}", self.server.address)
        })?;
        let (client, server) = self.pair(&listener).await?;
        ensure(client.peer() == local && server.local() == local, || {
            format!(
                "connected to {local}, ends say {} and {}",
                client.peer(),
                server.local()
            )
        })?;
        ensure(client.local() == server.peer(), || {
            format!("from {}, seen as {}", client.local(), server.peer())
        })?;
        ensure(client.local().ip() == self.from(), || {
            format!("connected from {}, not {}", client.local(), self.from())
        })
    }

    async fn one_listener_per_address(&self) -> Verdict {
        let listener = self.listen().await?;
        let second = self.server.network.listen(listener.local()).await;
        let kinds = [NetErrorKind::AddressInUse];
        bad("a second listener", &kinds, second.map(|_| ()))
    }

    async fn carries_bytes_both_ways(&self, rng: &mut SimRng) -> Verdict {
        let listener = self.listen().await?;
        let (client, server) = self.pair(&listener).await?;
        let (there, back) = (noise(LONG, rng), noise(LONG, rng));
        let (mut rng_there, mut rng_back) = (rng.fork(), rng.fork());
        let sends = join(
            send_in_pieces(&client, &there, &mut rng_there),
            send_in_pieces(&server, &back, &mut rng_back),
        );
        let receives = join(
            receive_exactly(&server, LONG),
            receive_exactly(&client, LONG),
        );
        let ((one, other), (at_server, at_client)) = self
            .within("two transfers", async { Ok(join(sends, receives).await) })
            .await?;
        one.and(other)?;
        ensure(at_server? == there, || {
            "the server received other bytes".into()
        })?;
        ensure(at_client? == back, || {
            "the client received other bytes".into()
        })
    }

    async fn a_receive_waits_and_may_be_dropped(&self) -> Verdict {
        let listener = self.listen().await?;
        let (client, server) = self.pair(&listener).await?;
        for round in 0..20u8 {
            let mut receive = server.receive(100);
            let early = receive
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            ensure(early.is_pending(), || "received what nobody sent".into())?;
            if round % 2 == 0 {
                drop(receive);
                good("send", client.send(vec![round; 3]).await)?;
                let got = self.within("receive", receive_exactly(&server, 3)).await?;
                ensure(got == [round; 3], || format!("{got:?} in round {round}"))?;
                continue;
            }
            good("send", client.send(vec![round]).await)?;
            let receive = async { good("receive", receive.await) };
            let got = self.within("a receive that waited", receive).await?;
            ensure(got == [round], || format!("{got:?} in round {round}"))?;
        }
        Ok(())
    }

    async fn ends_in_order(&self, rng: &mut SimRng) -> Verdict {
        let listener = self.listen().await?;
        for drops in [false, true] {
            let (client, server) = self.pair(&listener).await?;
            let bytes = noise(LONG / 16, rng);
            let mut pieces = rng.fork();
            let send = async {
                send_in_pieces(&client, &bytes, &mut pieces).await?;
                match drops {
                    true => drop(client),
                    false => client.close(),
                }
                Ok(())
            };
            let both = async {
                let (sent, received) = join(send, receive_all(&server)).await;
                sent.and(received)
            };
            let got = self.within("a transfer and its end", both).await?;
            ensure(got == bytes, || {
                format!("{} of {} bytes before the end", got.len(), bytes.len())
            })?;
            let again = good("receive after the end", server.receive(10).await)?;
            ensure(again.is_empty(), || "bytes after the end".into())?;
        }
        Ok(())
    }

    async fn closed_is_closed(&self) -> Verdict {
        let listener = self.listen().await?;
        let (client, _server) = self.pair(&listener).await?;
        let kinds = [NetErrorKind::Closed];
        let mut waiting = client.receive(10);
        ensure(self.waits(&mut waiting).await, || "received nothing".into())?;
        client.close();
        let waiting = async { Ok(waiting.await) };
        let result = self.within("a receive at its close", waiting).await?;
        bad("a receive that waited", &kinds, result)?;
        bad("receive after close", &kinds, client.receive(10).await)?;
        bad("send after close", &kinds, client.send(vec![1]).await)?;
        client.close();
        Ok(())
    }

    /// Whoever does not read stops the sender; once it reads, all arrives.
    async fn takes_a_bounded_number_of_bytes(&self) -> Verdict {
        let listener = self.listen().await?;
        let (client, server) = self.pair(&listener).await?;
        let piece = vec![0xa5; 64 << 10];
        let mut sent = 0;
        loop {
            let mut send = client.send(piece.clone());
            sent += piece.len();
            if self.waits(&mut send).await {
                let receive = receive_exactly(&server, sent);
                let both = async {
                    let (sent, received) = join(send, receive).await;
                    good("a send that waited", sent).and(received)
                };
                let got = self.within("drain", both).await?;
                return ensure(got.iter().all(|byte| *byte == 0xa5), || {
                    "other bytes were received".into()
                });
            }
            ensure(sent < UNBOUNDED, || {
                format!("{sent} bytes were taken and nobody received")
            })?;
        }
    }

    async fn tells_when_the_peer_is_gone(&self) -> Verdict {
        let listener = self.listen().await?;
        let (client, server) = self.pair(&listener).await?;
        drop(server);
        let sending = async {
            while client.send(vec![1; 100]).await.is_ok() {
                self.host.sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        };
        self.within("an error of a send to nobody", sending).await?;
        let kinds = [NetErrorKind::Reset];
        bad("another send", &kinds, client.send(vec![1]).await)
    }

    async fn many_at_once(&self, rng: &mut SimRng) -> Verdict {
        let listener = self.listen().await?;
        let count = 32u8;
        let clients = (0..count).map(|index| {
            let mut rng = rng.fork();
            let connect = self.connect(listener.local());
            async move {
                let stream = good("connect", connect.await)?;
                let bytes = noise(1 + rng.below(30_000) as usize, &mut rng);
                let mut all = vec![index];
                all.extend((bytes.len() as u32).to_be_bytes());
                all.extend(&bytes);
                send_in_pieces(&stream, &all, &mut rng).await?;
                let echo = receive_exactly(&stream, bytes.len()).await?;
                ensure(echo == bytes, || {
                    format!("connection {index} got others' bytes")
                })
            }
        });
        let clients = join_all(clients.collect::<Vec<_>>());
        let server = async {
            let mut streams = Vec::new();
            for _ in 0..count {
                streams.push(good("accept", listener.accept().await)?);
            }
            let echoes = streams.iter().map(|stream| async move {
                let head = receive_exactly(stream, 5).await?;
                let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
                let bytes = receive_exactly(stream, len as usize).await?;
                good("echo", stream.send(bytes).await)
            });
            let verdicts: Vec<Verdict> = join_all(echoes.collect::<Vec<_>>()).await;
            verdicts.into_iter().collect::<Verdict>()
        };
        let all = async {
            let (clients, server) = join(clients, server).await;
            clients.into_iter().collect::<Verdict>().and(server)
        };
        self.within("many connections", all).await
    }
}

#[cfg(test)]
#[path = "net_contract_tests.rs"]
mod tests;
