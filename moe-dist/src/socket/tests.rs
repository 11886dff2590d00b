//! A rank that holds the key and does not keep to the protocol.

use super::control::{Control, Message};
use super::door::{Door, Visit};
use super::lines::Lines;
use super::meeting;
use super::near;
use super::noise::{Greeting, Line, Realm};
use super::wait::{READ, wait};
use crate::frame::HEADER;
use crate::{Key, Launch, Link, World};
use moe_core::{CollectiveError, CollectiveFault};
use std::error::Error;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

/// The error of an honest rank 0 whose peer does `wrong` once they are connected.
fn beside(wrong: impl FnOnce(&mut Lines)) -> CollectiveError {
    let [zero, one]: [Launch; 2] = Launch::local(2).unwrap().try_into().unwrap();
    let honest = thread::spawn(move || World::connect(&zero, LONG).unwrap_err());
    let mut rogue = meeting(&one, LONG).unwrap();
    rogue.run().unwrap();
    wrong(&mut rogue.lines);
    let begin = Instant::now();
    let error = honest.join().unwrap();
    assert!(begin.elapsed() < LONG / 2);
    match error {
        crate::ConnectError::Collective(error) => error,
        other => panic!("{other}"),
    }
}

/// The header that rank 0 has sent.
fn header(lines: &mut Lines) -> [u8; HEADER] {
    let (mut header, mut have) = ([0; HEADER], 0);
    while have < HEADER {
        let data = lines.data(0).unwrap();
        match data.receive([&mut header, &mut [], &mut []], have) {
            Ok(count) => have += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                wait(&[(data.as_fd(), READ)], Instant::now() + LONG).unwrap();
            }
        }
    }
    header
}

#[test]
fn a_length_of_all_ones_is_not_believed() {
    let error = beside(|lines| {
        let mut header = header(lines);
        header[64..].fill(0xff);
        lines.data(0).unwrap().send(&[&header], 0).unwrap();
    });
    assert_eq!((error.rank, error.fault), (1, CollectiveFault::Mismatch));
    let cause = error.source().unwrap().to_string();
    assert_eq!(cause, format!("it sends {} elements to rank 0, which expects 0 from it", u64::MAX));
}

#[test]
fn bytes_that_are_no_frame_are_a_protocol_error() {
    let error = beside(|lines| drop(lines.data(0).unwrap().send(&[&[0xee; HEADER]], 0)));
    assert_eq!((error.rank, error.fault), (1, CollectiveFault::Protocol));
}

#[test]
fn a_frame_of_another_run_is_a_protocol_error() {
    let error = beside(|lines| {
        let mut header = header(lines);
        header[8] ^= 1;
        lines.data(0).unwrap().send(&[&header], 0).unwrap();
    });
    assert_eq!((error.rank, error.fault), (1, CollectiveFault::Protocol));
}

#[test]
fn half_a_header_and_the_end_is_a_lost_rank() {
    let error = beside(|lines| {
        lines.data(0).unwrap().send(&[&[0; HEADER / 2]], 0).unwrap();
        *lines = Lines::new(2);
    });
    assert_eq!((error.rank, error.fault), (1, CollectiveFault::Lost));
}

#[test]
fn nonsense_on_a_control_connection_ends_it_alone() {
    let error = beside(|lines| {
        let control: &mut Control = lines.control(0).unwrap();
        control.send(&Message::Table(Vec::new())).unwrap();
        lines.data(0).unwrap().send(&[&[0xee; HEADER]], 0).unwrap();
    });
    assert_eq!(error.fault, CollectiveFault::Protocol);
}

#[test]
fn frames_in_clear_go_over_unix_sockets_and_encrypted_ones_over_tcp() {
    for (encrypt, link) in [(false, Link::Unix), (true, Link::Encrypted)] {
        let launches: [Launch; 2] = Launch::local(2).unwrap().try_into().unwrap();
        let ranks = launches.map(|launch| {
            thread::spawn(move || World::connect(&Launch { encrypt, ..launch }, LONG).unwrap())
        });
        let [zero, one] = ranks.map(|rank| rank.join().unwrap());
        assert_eq!([zero.link(1), one.link(0)], [Some(link); 2]);
        assert_eq!([zero.link(0), one.link(2)], [None; 2], "itself, and none");
    }
}

#[test]
fn a_process_that_has_taken_a_ranks_unix_name_is_an_error() {
    let [zero, _] = Launch::local(2).unwrap().try_into().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], zero.port));
    let _other = near::Listener::new(&address).unwrap();
    let error = World::connect(&zero, LONG).unwrap_err();
    let cause = error.source().unwrap().to_string();
    assert_eq!(cause, format!("another process has the Unix name of {address}"));
}

#[test]
fn a_recorded_call_leads_nowhere() {
    let realm = Realm { run: 1, size: 2, secured: true, key: Key::new([7; 32]) };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut door = Door::new(listener, None, realm.clone(), 0).unwrap();
    // The first message of a rank with the key, as someone else has seen it, sent again with what followed.
    let (first, _) = realm.call(Greeting { line: Line::Control, caller: 1, called: 0 }).unwrap();
    let mut again = TcpStream::connect(address).unwrap();
    again.write_all(&first).unwrap();
    again.write_all(&[0x55; 34]).unwrap();
    let visit = door.next(&[], Instant::now() + Duration::from_millis(300)).unwrap();
    assert!(matches!(visit, Visit::Deadline), "it is no guest");
    assert!(door.turned_away.is_some());
}
