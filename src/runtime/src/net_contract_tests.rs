use super::*;
use crate::LocalFuture;
use crate::sim::{NetOptions, SimNet, Simulation};
use std::cell::Cell;

/// A way to break the contract, for one rule to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    ListensToAll,
    WrongPeer,
    SharesAddresses,
    LosesBytes,
    SwapsBytes,
    DropTakes,
    NoEnd,
    SendsWhenClosed,
    TakesAll,
    NeverBreaks,
}

struct Flawed {
    network: Rc<dyn Network>,
    flaw: Flaw,
}

struct FlawedListener {
    listener: Rc<dyn Listener>,
    flaw: Flaw,
}

struct FlawedStream {
    stream: Connection,
    flaw: Flaw,
    sends: Cell<u64>,
}

fn flawed(stream: Connection, flaw: Flaw) -> Connection {
    let sends = Cell::new(0);
    Rc::new(FlawedStream {
        stream,
        flaw,
        sends,
    })
}

impl Network for Flawed {
    fn listen(&self, local: SocketAddr) -> LocalFuture<Result<Rc<dyn Listener>, NetError>> {
        let (mut local, flaw) = (local, self.flaw);
        if flaw == Flaw::SharesAddresses {
            local.set_port(thread_local_port());
        }
        let listen = self.network.listen(local);
        Box::pin(async move {
            let listener = listen.await?;
            if flaw == Flaw::ListensToAll {
                std::mem::forget(listener.clone());
            }
            let listener: Rc<dyn Listener> = Rc::new(FlawedListener { listener, flaw });
            Ok(listener)
        })
    }

    fn connect(
        &self,
        local: IpAddr,
        remote: SocketAddr,
    ) -> LocalFuture<Result<Connection, NetError>> {
        let (connect, flaw) = (self.network.connect(local, remote), self.flaw);
        Box::pin(async move { Ok(flawed(connect.await?, flaw)) })
    }
}

thread_local! {
    static PORT: Cell<u16> = const { Cell::new(20_000) };
}

fn thread_local_port() -> u16 {
    PORT.replace(PORT.get() + 1)
}

impl Listener for FlawedListener {
    fn local(&self) -> SocketAddr {
        self.listener.local()
    }

    fn accept(&self) -> LocalFuture<Result<Connection, NetError>> {
        let (accept, flaw) = (self.listener.accept(), self.flaw);
        Box::pin(async move { Ok(flawed(accept.await?, flaw)) })
    }
}

impl Stream for FlawedStream {
    fn local(&self) -> SocketAddr {
        self.stream.local()
    }

    fn peer(&self) -> SocketAddr {
        match self.flaw {
            Flaw::WrongPeer => self.stream.local(),
            _ => self.stream.peer(),
        }
    }

    fn receive(&self, max: usize) -> LocalFuture<Result<Vec<u8>, NetError>> {
        let receive = self.stream.receive(max);
        match self.flaw {
            Flaw::DropTakes => {
                // Takes at once, whether or not somebody waits.
                let (stream, slot) = (self.stream.clone(), Rc::new(Cell::new(None)));
                let put = slot.clone();
                let mut receive = stream.receive(max);
                let early = receive
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                if let std::task::Poll::Ready(Ok(bytes)) = early {
                    put.set(Some(bytes.len()));
                }
                Box::pin(async move {
                    match slot.take() {
                        Some(count) => Ok(vec![0; count]),
                        None => receive.await,
                    }
                })
            }
            Flaw::NoEnd => Box::pin(async move {
                let bytes = receive.await?;
                if bytes.is_empty() {
                    std::future::pending::<()>().await;
                }
                Ok(bytes)
            }),
            _ => receive,
        }
    }

    fn send(&self, mut bytes: Vec<u8>) -> LocalFuture<Result<(), NetError>> {
        let number = self.sends.replace(self.sends.get() + 1);
        match self.flaw {
            Flaw::LosesBytes if number == 50 => {
                bytes.pop();
            }
            Flaw::SwapsBytes if number == 50 => bytes.reverse(),
            _ => {}
        }
        let send = self.stream.send(bytes);
        match self.flaw {
            Flaw::SendsWhenClosed => Box::pin(async move {
                match send.await {
                    Err(error) if error.kind == NetErrorKind::Closed => Ok(()),
                    result => result,
                }
            }),
            Flaw::TakesAll => Box::pin(async move {
                let mut send = send;
                let early = send.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                match early {
                    std::task::Poll::Ready(result) => result,
                    std::task::Poll::Pending => Ok(()),
                }
            }),
            Flaw::NeverBreaks => Box::pin(async move {
                match send.await {
                    Err(error) if error.kind == NetErrorKind::Reset => Ok(()),
                    result => result,
                }
            }),
            _ => send,
        }
    }

    fn close(&self) {
        self.stream.close();
    }
}

fn judge(options: NetOptions, seed: u64, flaw: Flaw) -> Result<(), Violation> {
    let sim = Simulation::new(seed);
    let net = SimNet::new(&sim.world(), options);
    let side = |last| {
        let address = SocketAddr::new(IpAddr::from([10, 0, 0, last]), 7777);
        let network = net.node(address.ip());
        Side {
            network: Rc::new(Flawed { network, flaw }),
            address,
        }
    };
    let (server, client) = (side(1), side(2));
    let host = sim.host();
    sim.block_on(run(&server, &client, &*host, seed))
        .expect("the suite ends")
}

#[test]
fn the_simulated_network_keeps_the_contract() {
    for seed in 0..10 {
        let fragment = seed % 2 == 0;
        let options = NetOptions {
            fragment,
            ..NetOptions::default()
        };
        judge(options, seed, Flaw::None).expect("kept");
        let options = NetOptions {
            latency: Duration::from_millis(1)..Duration::from_millis(30),
            window_bytes: 1000,
            backlog: 2,
            ..NetOptions::default()
        };
        judge(options, seed, Flaw::None).expect("kept when slow and narrow");
    }
}

#[test]
fn each_flaw_is_found_by_its_rule() {
    let cases = [
        (Flaw::ListensToAll, "refuses_where_nobody_listens"),
        (Flaw::WrongPeer, "tells_addresses"),
        (Flaw::SharesAddresses, "one_listener_per_address"),
        (Flaw::LosesBytes, "carries_bytes_both_ways"),
        (Flaw::SwapsBytes, "carries_bytes_both_ways"),
        (Flaw::DropTakes, "carries_bytes_both_ways"),
        (Flaw::NoEnd, "ends_in_order"),
        (Flaw::SendsWhenClosed, "closed_is_closed"),
        (Flaw::TakesAll, "carries_bytes_both_ways"),
        (Flaw::NeverBreaks, "tells_when_the_peer_is_gone"),
    ];
    for (flaw, rule) in cases {
        let found = judge(NetOptions::default(), 7, flaw).expect_err("a flaw");
        assert_eq!(found.rule, rule, "{flaw:?}: {found}");
    }
}
