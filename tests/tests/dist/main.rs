//! Many ranks.

mod mesh;
