//! Lists of objects, a page at a time.
//!
//! Owns where a list is. Knows nothing about handles of anything else. Invariant: no page is kept between two calls.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::Resource;

use super::generated::wasi::blobstore::container;
use super::{Answer, list};
use crate::capability::Host;
use crate::capability::data::OpenBucket;
use crate::data::objects::PAGE_LEN_MAX;

/// A list on its way.
#[derive(Debug)]
pub struct Names {
    pub(super) bucket: Arc<OpenBucket>,
    pub(super) after: Option<Bytes>,
    pub(super) has_ended: bool,
}

impl Names {
    /// The next names, at most `count`; fewer only at the end of a page.
    async fn page(&mut self, count: u64) -> Answer<Vec<String>> {
        let limit = usize::try_from(count).unwrap_or(usize::MAX).min(PAGE_LEN_MAX);
        if self.has_ended || limit == 0 {
            return Ok(Vec::new());
        }
        let page = list(&self.bucket, self.after.clone(), limit).await?;
        self.has_ended = page.next.is_none();
        self.after = page.next;
        Ok(page.objects.iter().filter_map(|(key, _)| std::str::from_utf8(key).ok()).map(str::to_owned).collect())
    }
}

impl container::HostStreamObjectNames for Host {
    async fn read_stream_object_names(&mut self, names: Resource<Names>, count: u64) -> Result<Answer<(Vec<String>, bool)>> {
        let names = self.table.get_mut(&names)?;
        loop {
            let page = match names.page(count).await {
                Ok(page) => page,
                Err(text) => return Ok(Err(text)),
            };
            if !page.is_empty() || names.has_ended || count == 0 {
                return Ok(Ok((page, names.has_ended)));
            }
            // A page of keys that are no text.
            tokio::task::yield_now().await;
        }
    }

    async fn skip_stream_object_names(&mut self, names: Resource<Names>, count: u64) -> Result<Answer<(u64, bool)>> {
        let names = self.table.get_mut(&names)?;
        let mut skipped = 0;
        while skipped < count && !names.has_ended {
            match names.page(count - skipped).await {
                Ok(page) => skipped += page.len() as u64,
                Err(text) => return Ok(Err(text)),
            }
            // Others have their turn after each page.
            tokio::task::yield_now().await;
        }
        Ok(Ok((skipped, names.has_ended)))
    }

    fn drop(&mut self, names: Resource<Names>) -> Result<()> {
        self.table.delete(names)?;
        Ok(())
    }
}
