//! A world leaves no thread and no socket behind, however it ends. A program of its own: it counts those of its process.

use moe_core::{Collective, Host};
use moe_dist::{Launch, World};
use std::time::Duration;
use std::{fs, thread};

fn sockets() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// A world of four ranks; `end` is how each leaves it.
fn world(end: impl Fn(World) + Sync) {
    thread::scope(|scope| {
        for launch in Launch::local(4).unwrap() {
            let end = &end;
            scope.spawn(move || {
                let world = World::connect(&launch, Duration::from_secs(30)).unwrap();
                assert!(sockets() >= 6, "two connections for each of three peers");
                end(world);
            });
        }
    });
}

#[test]
fn nothing_is_left_of_a_world() {
    let before = (threads(), sockets());
    world(drop);
    world(|world| {
        let mut group = world.group(&Host, "all", &[0, 1, 2, 3]).unwrap();
        drop(world);
        Collective::<Host>::barrier(&mut group, &()).unwrap();
    });
    world(|world| {
        let mut group = world.group(&Host, "all", &[3, 2, 1, 0]).unwrap();
        if world.rank() == 2 {
            Collective::<Host>::abort(&mut group);
        }
        Collective::<Host>::barrier(&mut group, &()).unwrap_err();
    });
    world(|world| {
        let mut group = world.group(&Host, "all", &[0, 1, 2, 3]).unwrap();
        if world.rank() != 1 {
            Collective::<Host>::barrier(&mut group, &()).unwrap_err();
        }
    });
    let alone = Launch::local(2).unwrap().remove(0);
    World::connect(&alone, Duration::from_millis(200)).unwrap_err();
    // A joined thread may stand in /proc for a moment longer.
    for _ in 0..100 {
        if threads() == before.0 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((threads(), sockets()), before);
}
