;; Throws what nobody catches.
(module (tag $t) (func (export "_start") (throw $t)))
