//! A hash router (Roller et al., "Hash Layers For Large Sparse Models", 2021): a token's number decides its experts.

/// The experts (T, K) of tokens, and their weights 1 / K. A token's K experts differ; `top_k` is at most `experts`.
pub fn hash_route(tokens: &[u32], top_k: usize, experts: usize) -> (Vec<u32>, Vec<f32>) {
    let ids = tokens.iter().flat_map(|token| {
        let hash = token.wrapping_mul(2_654_435_761).rotate_left(13) as usize;
        (0..top_k).map(move |k| ((hash + k) % experts) as u32)
    });
    (ids.collect(), vec![1.0 / top_k as f32; tokens.len() * top_k])
}
