//! What comes to a rank's port that is no rank, or has the wrong key, or comes twice; and what happens on the way.

use moe_core::{Collective, CollectiveError, CollectiveFault, Host, Reduce, ViewMut};
use moe_dist::{ConnectError, Group, Key, Launch, Link, World};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);

type Met = Result<World, ConnectError>;

fn meet(launch: &Launch, timeout: Duration) -> JoinHandle<Met> {
    let launch = launch.clone();
    thread::spawn(move || World::connect(&launch, timeout))
}

fn two() -> [Launch; 2] {
    Launch::local(2).unwrap().try_into().unwrap()
}

/// A connection to rank 0 once it listens.
fn call(launch: &Launch) -> TcpStream {
    let begin = Instant::now();
    loop {
        match TcpStream::connect((launch.address.as_str(), launch.port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
        sleep(Duration::from_millis(5));
    }
}

fn error(met: Met) -> CollectiveError {
    match met.unwrap_err() {
        ConnectError::Collective(error) => error,
        other => panic!("{other}"),
    }
}

fn cause(error: &CollectiveError) -> String {
    error.source.as_ref().map_or(String::new(), ToString::to_string)
}

/// One operation between the two.
fn sum(world: &World) -> Result<Vec<f32>, CollectiveError> {
    let mut group: Group<Host> = world.group(&Host, "all", &[0, 1]).unwrap();
    let mut values = vec![1.0_f32; 1 << 19];
    group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut values[..])).map(|()| values)
}

fn works(worlds: [World; 2]) {
    let threads = worlds.map(|world| thread::spawn(move || sum(&world).unwrap()));
    for thread in threads {
        assert!(thread.join().unwrap().iter().all(|&sum| sum == 2.0));
    }
}

#[test]
fn a_wrong_key_is_an_error_on_both_sides() {
    let [first, second] = two();
    let zero = meet(&first, Duration::from_secs(3));
    let other = Launch { key: Some(Key::random().unwrap()), ..second };
    let refused = error(World::connect(&other, LONG));
    assert_eq!((refused.rank, refused.fault), (0, CollectiveFault::Protocol));
    assert!(cause(&refused).contains("its key, run, world size or version is another"), "{refused:?}");
    let missed = error(zero.join().unwrap());
    assert_eq!((missed.rank, missed.fault), (1, CollectiveFault::Deadline));
    assert!(cause(&missed).contains("it says it is rank 1, but has another key"), "{missed:?}");
}

#[test]
fn another_run_or_another_size_is_refused() {
    for wrong in [|launch| Launch { run: "other".into(), ..launch }, |launch| Launch { size: 3, ..launch }] {
        let [first, second] = two();
        let zero = meet(&first, Duration::from_secs(2));
        let refused = error(World::connect(&wrong(second), LONG));
        assert_eq!(refused.fault, CollectiveFault::Protocol);
        let missed = error(zero.join().unwrap());
        assert!(cause(&missed).contains("no rank of this world, run and version"), "{missed:?}");
    }
}

#[test]
fn a_second_process_with_a_rank_is_refused_and_the_first_is_not_disturbed() {
    let [zero, one, two]: [Launch; 3] = Launch::local(3).unwrap().try_into().unwrap();
    let (first, second) = (meet(&zero, LONG), meet(&one, LONG));
    // Of these two one is late, whichever it is; the world waits for rank 2.
    sleep(Duration::from_millis(200));
    let refused = error(World::connect(&one, LONG));
    assert_eq!((refused.rank, refused.op, refused.fault), (1, "connect", CollectiveFault::Mismatch));
    assert_eq!(cause(&refused), "rank 1 is there already: two processes claim it");
    let third = World::connect(&two, LONG).unwrap();
    let worlds = [first.join().unwrap().unwrap(), second.join().unwrap().unwrap(), third];
    let threads = worlds.map(|world| {
        thread::spawn(move || {
            let mut all = world.group(&Host, "all", &[0, 1, 2]).unwrap();
            Collective::<Host>::barrier(&mut all, &()).unwrap();
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn strangers_are_turned_away() {
    let [first, second] = two();
    let zero = meet(&first, LONG);
    for greeting in [
        &b"GET / HTTP/1.1\r\nHost: here\r\nUser-Agent: a client of something else altogether\r\n\r\n"[..],
        &[0xff; 4000],
    ] {
        let mut stranger = call(&first);
        stranger.write_all(greeting).unwrap();
        stranger.set_read_timeout(Some(LONG)).unwrap();
        // Closed, or reset because it was not read to its end.
        assert!(stranger.read(&mut [0; 16]).unwrap_or(0) == 0, "a stranger gets no answer");
    }
    let other = World::connect(&second, LONG).unwrap();
    works([zero.join().unwrap().unwrap(), other]);
}

#[test]
fn a_thousand_silent_connections_do_not_delay_a_rank() {
    let [first, second] = two();
    let zero = meet(&first, LONG);
    let silent: Vec<_> = (0..1000).map(|_| call(&first)).collect();
    let begin = Instant::now();
    let one = World::connect(&second, LONG).unwrap();
    let zero = zero.join().unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "after {:?}", begin.elapsed());
    works([zero, one]);
    drop(silent);
}

/// What happens to the bytes that rank 1 sends on one of its connections to rank 0.
#[derive(Clone, Copy)]
enum Way {
    /// a record comes a second time
    Repeat,
    /// a bit is turned
    Change,
    /// the connection ends in a frame
    Cut,
}

/// Passes connections on to `port`. Does `way` once to what has gone more than 200000 bytes, the data connection alone.
fn proxy(port: u16, way: Way) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for near in listener.incoming().take(2) {
            let near = near.unwrap();
            let far = loop {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(far) => break far,
                    Err(_) => sleep(Duration::from_millis(5)),
                }
            };
            let (near_reader, far_reader) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || pass(far_reader, near_reader, None));
            thread::spawn(move || pass(near, far, Some(way)));
        }
    });
    own
}

/// Bytes of a caller's two messages of a handshake.
const HANDSHAKE: usize = 76 + 34;

/// The bytes that [`pass`] moves next: as they come, or the handshake and then whole records, so that what is repeated is one.
fn next(from: &mut TcpStream, buffer: &mut [u8], records: bool, gone: usize) -> std::io::Result<usize> {
    if !records {
        return from.read(buffer);
    }
    if gone < HANDSHAKE {
        return from.read(&mut buffer[..HANDSHAKE - gone]);
    }
    from.read_exact(&mut buffer[..2])?;
    let end = 2 + usize::from(u16::from_le_bytes([buffer[0], buffer[1]]));
    from.read_exact(&mut buffer[2..end]).map(|()| end)
}

fn pass(mut from: TcpStream, mut to: TcpStream, way: Option<Way>) {
    let (mut gone, mut buffer) = (0, [0; 2 + u16::MAX as usize]);
    let records = matches!(way, Some(Way::Repeat));
    while let Ok(count @ 1..) = next(&mut from, &mut buffer, records, gone) {
        let before = gone;
        gone += count;
        let bytes = &mut buffer[..count];
        let due = before <= 200_000 && gone > 200_000;
        match way.filter(|_| due) {
            None => {}
            Some(Way::Change) => bytes[count / 2] ^= 1,
            Some(Way::Repeat) => drop(to.write_all(bytes)),
            Some(Way::Cut) => {
                let _: std::io::Result<()> = to.write_all(&bytes[..count / 2]);
                break;
            }
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _: [std::io::Result<()>; 2] = [from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)];
}

/// Both ranks' errors when this happens on the way from rank 1 to rank 0.
fn on_the_way(way: Way, encrypt: bool) -> [CollectiveError; 2] {
    let [first, second] = two().map(|launch| Launch { encrypt, ..launch });
    let zero = meet(&first, LONG);
    let port = proxy(first.port, way);
    let one = World::connect(&Launch { port, ..second }, LONG).unwrap();
    assert_eq!(one.link(0), Some(if encrypt { Link::Encrypted } else { Link::Tcp }), "as to another host");
    let begin = Instant::now();
    let errors =
        [zero.join().unwrap().unwrap(), one].map(|world| thread::spawn(move || sum(&world).unwrap_err()));
    let errors = errors.map(|thread| thread.join().unwrap());
    assert!(begin.elapsed() < LONG / 3, "seen at once, not at the deadline");
    errors
}

#[test]
fn with_a_key_a_record_that_comes_twice_or_changed_is_refused() {
    for way in [Way::Repeat, Way::Change] {
        for error in on_the_way(way, true) {
            assert_eq!(error.to_string(), "rank 1 sent what no rank sends, in all_reduce 1 of group all");
        }
    }
}

#[test]
fn a_connection_cut_in_a_frame_is_named_by_both_sides() {
    for encrypt in [false, true] {
        for (me, error) in on_the_way(Way::Cut, encrypt).into_iter().enumerate() {
            assert_eq!(error.fault, CollectiveFault::Lost, "rank {me}: {error:?}");
            assert_eq!((error.op, error.sequence), ("all_reduce", 1));
        }
    }
}

#[test]
fn beyond_the_loopback_a_key_is_required() {
    let [launch, _] = two();
    for away in
        [Launch { address: "10.1.2.3".into(), ..launch.clone() }, Launch { encrypt: true, ..launch.clone() }]
    {
        let error = World::connect(&Launch { key: None, ..away }, LONG).unwrap_err();
        assert!(error.to_string().contains("set MOE_KEY"), "{error}");
    }
}

#[test]
fn a_launch_that_cannot_be_is_refused() {
    let [launch, _] = two();
    let refused = |launch: Launch| World::connect(&launch, LONG).unwrap_err().to_string();
    assert_eq!(refused(Launch { rank: 2, ..launch.clone() }), "rank is 2, but there are 2 ranks");
    assert!(refused(Launch { size: 0, ..launch.clone() }).contains("size is 0"));
    assert!(
        refused(Launch { address: "no.such.host.invalid".into(), ..launch }).contains("cannot be resolved")
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let [launch, _] = two();
    let _other = TcpListener::bind(("127.0.0.1", launch.port)).unwrap();
    let error = error(World::connect(&launch, LONG));
    assert!(cause(&error).contains("rank 0 cannot listen on 127.0.0.1"), "{error:?}");
}
