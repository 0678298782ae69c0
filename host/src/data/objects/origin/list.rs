//! Lists: pages of keys as the origin has them, under the names that a bucket gives them.
//!
//! Owns the way from paths to keys. Knows nothing about how copies come. Invariant: a page names only what lies below the bucket's origin.

use bytes::Bytes;

use super::super::super::bucket::Bucket;
use super::super::super::error::{DataError, OriginFault};
use super::super::{Head, KEY_BYTES_MAX, Page};
use super::heads::{copy_head, listed_head};
use super::remote::Pause;
use super::{Inner, origin_of};

/// Answers of an origin that one page of a list may take.
const ANSWERS_MAX: usize = 8;

impl Inner {
    /// A head with the digest of the copy, if there is one of the same version.
    pub(super) fn described(&self, bucket: &Bucket, key: &[u8], head: Head) -> Head {
        let copy = self.cache.peek(bucket.id, key).map(|copy| copy_head(&copy)).filter(|copy| copy.etag == head.etag);
        Head { digest: copy.and_then(|copy| copy.digest), ..head }
    }

    /// One page of a list, as the origin has it.
    pub(super) async fn list(&self, bucket: &Bucket, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, DataError> {
        self.check_exists(bucket)?;
        let url = origin_of(bucket)?;
        let remote = self.remote(url)?;
        let _place = self.admit(remote).await?;
        let root = if url.prefix().is_empty() { String::new() } else { format!("{}/", url.prefix()) };
        let (full, from) = (format!("{root}{prefix}"), after.map(|after| format!("{root}{after}")));
        let (mut page, mut token, mut pause) = (Page::default(), None, Pause::default());
        for _ in 0..ANSWERS_MAX {
            let (listed, next) = loop {
                match remote.list(&full, from.as_deref(), token.clone(), limit - page.objects.len()).await {
                    Ok(answer) => break answer,
                    Err(why) => pause.after(why.into()).await?,
                }
            };
            for object in listed {
                let Some(key) = object.path.strip_prefix(&root) else { continue };
                // A folder's own entry comes without its slash, and may be one that was listed before.
                if key.starts_with(prefix) && after.is_none_or(|after| key > after) && key.len() <= KEY_BYTES_MAX {
                    let key = Bytes::copy_from_slice(key.as_bytes());
                    let head = listed_head(object.etag.as_deref(), object.len, object.modified_ms);
                    let head = self.described(bucket, &key, head);
                    page.objects.push((key, Ok(head)));
                }
            }
            token = next;
            if token.is_none() || page.objects.len() >= limit {
                break;
            }
        }
        // Whatever it answered, a page has a bound.
        let has_more = token.is_some() || page.objects.len() > limit;
        page.objects.truncate(limit);
        let last = page.objects.last().map(|(key, _)| key.clone());
        page.next = last.filter(|_| has_more);
        if has_more && page.next.is_none() {
            return Err(OriginFault::Nonsense { what: "a list without end" }.into());
        }
        Ok(page)
    }
}
