;; A linked list of collected objects that only grows.
(module
  (rec (type $node (struct (field (ref null $node)))))
  (func (export "_start") (local $head (ref null $node))
    (loop $on (local.set $head (struct.new $node (local.get $head))) (br $on))))
