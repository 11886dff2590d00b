//! Many ranks.

mod checkpoint;
mod mesh;
mod ranks;
mod rules;
mod steps;
