;; One collected array of 4 GB.
(module
  (type $bytes (array (mut i8)))
  (func (export "_start") (drop (array.new_default $bytes (i32.const -1)))))
