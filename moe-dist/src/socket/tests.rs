//! A rank that holds the key and does not keep to the protocol.

use super::control::{ADDRESS, Control, Message};
use super::dial::dial;
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
    let ways = [[false, false], [false, true], [true, false], [true, true]];
    for ([encrypt, tcp], link) in
        ways.into_iter().zip([Link::Unix, Link::Tcp, Link::Encrypted, Link::Encrypted])
    {
        let launches: [Launch; 2] = Launch::local(2).unwrap().try_into().unwrap();
        let ranks = launches.map(|launch| {
            thread::spawn(move || World::connect(&Launch { encrypt, tcp, ..launch }, LONG).unwrap())
        });
        let [zero, one] = ranks.map(|rank| rank.join().unwrap());
        assert_eq!([zero.link(1), one.link(0)], [Some(link); 2]);
        assert_eq!([zero.link(0), one.link(2)], [None; 2], "itself, and none");
    }
}

/// How two ranks are linked when another process of this user has had the name of rank 0's port before rank 0.
fn links_beside<T>(other: impl FnOnce(near::Listener) -> T) -> [Option<Link>; 2] {
    let launches: [Launch; 2] = Launch::local(2).unwrap().try_into().unwrap();
    let _other = other(near::Listener::new(&([127, 0, 0, 1], launches[0].port).into()).unwrap());
    let ranks = launches.map(|launch| thread::spawn(move || World::connect(&launch, LONG).unwrap()));
    let [zero, one] = ranks.map(|rank| rank.join().unwrap());
    [zero.link(1), one.link(0)]
}

#[test]
fn where_a_stranger_has_a_ranks_unix_name_frames_take_tcp() {
    let silent = links_beside(|listener| listener);
    assert_eq!(silent, [Some(Link::Tcp); 2]);
    let hangs_up = links_beside(|listener| {
        thread::spawn(move || {
            let calls = std::iter::repeat_with(|| listener.accept());
            for _ in calls.take_while(|call| call.is_err()) {
                thread::sleep(Duration::from_millis(1));
            }
        })
    });
    assert_eq!(hangs_up, [Some(Link::Tcp); 2]);
}

/// A rank's door on TCP and on its Unix name, and its address.
fn door(realm: &Realm) -> (Door, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let near = near::Listener::new(&address).unwrap();
    (Door::new(listener, Some(near), realm.clone(), 0).unwrap(), address)
}

#[test]
fn strangers_at_a_ranks_unix_name_are_in_nobodys_way() {
    let realm = Realm { run: 1, size: 2, secured: false, near: true, key: Key::new([7; 32]) };
    let greeting = Greeting { line: Line::Data, caller: 1, called: 0 };
    let (mut door, address) = door(&realm);
    let mut strangers: Vec<_> = (0..100).map(|_| near::call(&address).unwrap()).collect();
    strangers[98].write_all(&[0xee; 200]).unwrap();
    let other = Realm { key: Key::new([8; 32]), ..realm.clone() };
    strangers[99].write_all(&other.call(greeting).unwrap().0).unwrap();
    let deadline = Instant::now() + LONG;
    let call =
        thread::spawn(move || dial(&realm, greeting, &[address], false, |_| Ok(vec![0; ADDRESS]), deadline));
    let Visit::Guest(guest) = door.next(&[], deadline).unwrap() else { panic!("no guest") };
    assert_eq!((guest.greeting, guest.stream.link()), (greeting, Link::Unix));
    assert_eq!(call.join().unwrap().map_err(|error| error.detail).unwrap().0.link(), Link::Unix);
    let reason = door.turned_away.unwrap();
    assert!(reason.contains("it says it is rank 1, but has another key"), "{reason}");
}

#[test]
fn a_recorded_call_leads_nowhere() {
    let realm = Realm { run: 1, size: 2, secured: true, near: false, key: Key::new([7; 32]) };
    let (mut door, address) = door(&realm);
    let ways: [Box<dyn Write>; 2] =
        [Box::new(TcpStream::connect(address).unwrap()), Box::new(near::call(&address).unwrap())];
    for mut again in ways {
        // The first message of a rank with the key, as someone else has seen it, sent again with what followed.
        let (first, _) = realm.call(Greeting { line: Line::Control, caller: 1, called: 0 }).unwrap();
        again.write_all(&first).unwrap();
        again.write_all(&[0x55; 34]).unwrap();
        let visit = door.next(&[], Instant::now() + Duration::from_millis(300)).unwrap();
        assert!(matches!(visit, Visit::Deadline), "it is no guest");
        assert!(door.turned_away.take().is_some());
    }
}
