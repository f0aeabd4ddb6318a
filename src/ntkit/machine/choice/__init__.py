"""What an estimator chooses by its data: scaling, kernel, penalty, by leave-one-out in closed form."""
