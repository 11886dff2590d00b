//! The largest of many values, in descending order; ties: lower index; NaN never.

/// Keys in a block. A block's largest key is kept, so that finding the next one looks at few keys.
pub(crate) const SPAN: usize = 16;
/// The key of what is not to be chosen.
pub(crate) const NEVER: i32 = i32::MIN;

/// An integer that orders like the value; both zeros have one key, NaN has [`NEVER`].
#[inline(always)]
pub(crate) fn key(value: f32) -> i32 {
    let bits = (value + 0.0).to_bits() as i32;
    let key = bits ^ ((bits >> 31) as u32 >> 1) as i32;
    if value.is_nan() { NEVER } else { key }
}

/// The value of a key that is not [`NEVER`].
#[inline(always)]
pub(crate) fn value(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) as u32 >> 1) as i32) as u32)
}

#[inline(always)]
fn largest(block: &[i32; SPAN]) -> i32 {
    let mut lanes = *block;
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = lanes[lane].max(lanes[lane + half]);
        }
    }
    lanes[0]
}

/// Writes the indices of the largest keys to `chosen`, and `none` where no key is left. Chosen keys become [`NEVER`].
/// `keys` is padded with [`NEVER`] to whole blocks; `tops` holds a value for each block.
#[inline(always)]
pub(crate) fn choose(keys: &mut [i32], tops: &mut [i32], chosen: &mut [u32], none: u32) {
    let (blocks, _) = keys.as_chunks_mut::<SPAN>();
    let tops = &mut tops[..blocks.len()];
    for (top, block) in tops.iter_mut().zip(&*blocks) {
        *top = largest(block);
    }
    for slot in chosen {
        let (mut at, mut best) = (0, NEVER);
        for (block, &top) in tops.iter().enumerate() {
            if top > best {
                (at, best) = (block, top);
            }
        }
        if best == NEVER {
            *slot = none;
            continue;
        }
        let place = blocks[at].iter().position(|key| *key == best).unwrap_or(0);
        blocks[at][place] = NEVER;
        tops[at] = largest(&blocks[at]);
        *slot = (at * SPAN + place) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_like_values() {
        let ascending = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -f32::from_bits(1),
            0.0,
            f32::from_bits(1),
            2.0,
            f32::INFINITY,
        ];
        assert!(ascending.is_sorted_by(|a, b| key(*a) < key(*b)));
        assert_eq!(key(0.0), key(-0.0));
        assert!(key(f32::NAN) < key(f32::NEG_INFINITY) && key(-f32::NAN) == NEVER);
    }

    #[test]
    fn ties_go_to_the_lower_index_and_nothing_is_chosen_twice() {
        let mut keys = [NEVER; 32];
        (keys[3], keys[17], keys[20]) = (7, 9, 9);
        let mut chosen = [0; 4];
        choose(&mut keys, &mut [0; 2], &mut chosen, 21);
        assert_eq!(chosen, [17, 20, 3, 21]);
    }
}
