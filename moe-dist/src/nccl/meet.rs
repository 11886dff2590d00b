//! Meet: how a communicator comes about. The ranks tell each other, over the world's own transport, whether they have NCCL; the first
//! adds the id by which it finds the others.

use super::NcclError;
use super::library::{UniqueId, Unusable};
use crate::called::Called;
use crate::collectives;
use crate::frame::Operation;
use crate::member::Member;
use moe_core::DType;

/// Bytes of what a rank says: the id, the length of the complaint as u16, the complaint.
const WORD: usize = 512;
const ID: usize = 128;

/// The id that rank 0 has made in `mine`; the others' are not looked at. If a rank has no NCCL, that is an error on all, and the world
/// goes on.
pub(super) fn meet(member: &mut Member, mine: Result<UniqueId, Unusable>) -> Result<UniqueId, NcclError> {
    member.count()?;
    let size = member.size();
    let word = encode(mine.as_ref().map_err(ToString::to_string));
    let mut all = vec![0; size * WORD];
    let counts = vec![WORD; size];
    let called = Called {
        elements: all.len(),
        counts: Some(&counts),
        ..Called::new(Operation::Connect, Some(DType::U8))
    };
    member.run(called, |call| collectives::all_gather(call, &word[..], &mut all, &counts))?;
    let words = all.as_chunks::<WORD>().0;
    let complaints = words.iter().enumerate().filter_map(|(rank, word)| Some((rank, complaint(word)?)));
    match { complaints }.next() {
        Some((rank, why)) => Err(NcclError::Unusable { group: member.name(), rank, why }),
        None => Ok(UniqueId(std::array::from_fn(|at| words[0][at]))),
    }
}

fn encode(mine: Result<&UniqueId, String>) -> [u8; WORD] {
    let mut word = [0; WORD];
    match mine {
        Ok(id) => word[..ID].copy_from_slice(&id.0),
        Err(text) => {
            let room = WORD - ID - 2;
            let end = (0..=text.len().min(room)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            word[ID..ID + 2].copy_from_slice(&(end as u16).to_le_bytes());
            word[ID + 2..ID + 2 + end].copy_from_slice(&text.as_bytes()[..end]);
        }
    }
    word
}

fn complaint(word: &[u8; WORD]) -> Option<String> {
    let len = usize::from(u16::from_le_bytes([word[ID], word[ID + 1]])).min(WORD - ID - 2);
    (len > 0).then(|| String::from_utf8_lossy(&word[ID + 2..ID + 2 + len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel;
    use std::thread;

    /// What the ranks get if each comes with what `mine` says, and whether they can go on.
    fn all(mine: fn(usize) -> Result<UniqueId, Unusable>) -> Vec<Result<[u8; 128], String>> {
        thread::scope(|scope| {
            let start = |world: crate::World| {
                scope.spawn(move || {
                    let mut member = world.member("ep", &[0, 1, 2]).unwrap();
                    let met = meet(&mut member, mine(world.rank()));
                    member.count().unwrap();
                    member.run(Called::new(Operation::Barrier, None), collectives::barrier).unwrap();
                    met.map(|id| id.0).map_err(|error| error.to_string())
                })
            };
            let threads: Vec<_> = channel::world(3).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_get_the_first_ones_id() {
        let met = all(|rank| Ok(UniqueId(std::array::from_fn(|at| (at + 100 * rank) as u8))));
        assert_eq!(met, vec![Ok(std::array::from_fn(|at| at as u8)); 3]);
    }

    #[test]
    fn a_rank_without_nccl_is_an_error_on_all_and_the_world_goes_on() {
        let met = all(|rank| match rank {
            1 => Err(Unusable::Missing),
            _ => Ok(UniqueId([7; 128])),
        });
        assert_eq!(met, vec![Err(format!("rank 1 of group ep: {}", Unusable::Missing)); 3]);
    }
}
