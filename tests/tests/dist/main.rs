//! Many ranks.

mod mesh;
mod ranks;
mod rules;
mod steps;
