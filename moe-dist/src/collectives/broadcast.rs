//! Broadcast: the root sends its elements to every other member. All others exchange fingerprints with each other and with the
//! root, which is the root's acknowledgement.

use super::{one, one_mut};
use crate::member::{Call, Lane};
use crate::transport::Stop;
use moe_core::Elem;

/// `values` become those of `root`.
pub(crate) fn broadcast<T: Elem>(call: &mut Call<'_>, root: usize, values: &mut [T]) -> Result<(), Stop> {
    let mut lanes: Vec<_> = (0..call.size()).map(|_| Lane::default()).collect();
    if call.me() == root {
        lanes.iter_mut().for_each(|lane| lane.send = one(values));
    } else {
        lanes[root].receive = one_mut(values);
    }
    call.round(lanes)
}
