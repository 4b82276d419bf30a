//! What a teardown does not touch: transfers with other remotes and on other ports go on, byte for byte,
//! while other connections die.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use xtask::hosts::{Connection, Daemon, Listener, Pair};

/// The byte at a place of the transfer: no shift, loss or repetition of less than 251 × 256 bytes
/// goes unnoticed.
fn byte(place: u64) -> u8 {
    (place % 251) as u8 ^ (place / 251) as u8
}

/// Sends until told that enough was done beside it, and checks each byte at the other end.
fn transfer(
    flow: &Connection,
    enough: impl Fn() -> bool + Sync,
    received: &AtomicU64,
) -> Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !enough() {
                let chunk: Vec<u8> = (sent..sent + 16_384).map(byte).collect();
                flow.client.stream().write_all(&chunk)?;
                sent += chunk.len() as u64;
            }
            flow.client.stream().shutdown(std::net::Shutdown::Write)?;
            Ok(sent)
        });
        let mut stream = flow.server.stream();
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut chunk = vec![0; 65_536];
        loop {
            let length = stream.read(&mut chunk)?;
            let done = received.load(Ordering::Relaxed);
            let wrong = (done..)
                .zip(&chunk[..length])
                .find(|(place, got)| byte(*place) != **got);
            ensure!(wrong.is_none(), "byte {wrong:?} is wrong");
            received.store(done + length as u64, Ordering::Relaxed);
            if length == 0 {
                break;
            }
        }
        let sent = sending.join().expect("no assertion fails there")?;
        let got = received.load(Ordering::Relaxed);
        ensure!(sent == got, "{sent} bytes were sent, {got} came");
        Ok(())
    })
}

#[test]
fn transfers_beside_a_teardown_go_on_byte_for_byte() -> Result<()> {
    let pair = Pair::new()?;
    let other = pair.second_remote()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    let hit = Listener::new(&pair.b, Pair::B, 0)?;
    let port = hit.address.port().to_string();
    let b = Pair::B.to_string();

    let other_remote = Connection::open(&pair.a, &pair.b, other)?;
    let other_port = Connection::open(&pair.a, &pair.b, Pair::B)?;
    for flow in [&other_remote, &other_port] {
        flow.client.stream().set_nonblocking(false)?;
    }
    let rounds = AtomicU64::new(0);
    let enough = || rounds.load(Ordering::Relaxed) >= 5;
    let moved = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| -> Result<()> {
        let transfers = [
            scope.spawn(|| transfer(&other_remote, enough, &moved[0])),
            scope.spawn(|| transfer(&other_port, enough, &moved[1])),
        ];
        let killing = || -> Result<()> {
            let until = Instant::now() + Duration::from_secs(60);
            while !enough() {
                ensure!(Instant::now() < until, "five rounds took too long");
                let before = moved.each_ref().map(|moved| moved.load(Ordering::Relaxed));
                let mut flow = hit.connect(&pair.a)?;
                let rule = [
                    "add",
                    &b,
                    "--mode",
                    "reset",
                    "--protocol",
                    "tcp",
                    "--remote-port",
                    &port,
                ];
                let answer = daemon.json(&rule)?;
                ensure!(answer["teardown"]["killed"] == 1, "{answer:#}");
                ensure!(
                    flow.wait_dead(Instant::now() + Duration::from_secs(5))?,
                    "{flow:?}"
                );
                ensure!(daemon.json(&["flush"])?["removed"] != json!([]));
                // Both transfers ran through it.
                while moved
                    .iter()
                    .zip(before)
                    .any(|(moved, before)| moved.load(Ordering::Relaxed) <= before + 65_536)
                {
                    ensure!(Instant::now() < until, "a transfer stands still");
                    std::thread::yield_now();
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let killed = killing();
        // However it went, the transfers are to end.
        rounds.store(5, Ordering::Relaxed);
        for transfer in transfers {
            transfer.join().expect("no assertion fails there")?;
        }
        killed
    })
}
